"""Inference: answer one question about documents or a conversation, or every row of a file, with an agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from memfactory.build import build_runtime
from memfactory.config import Resolved
from memfactory.config.overrides import COMMAND_LINE_PREFIX
from memfactory.config.reading import Limit, reading_all
from memfactory.episode import Episode
from memfactory.errors import ConfigError
from memfactory.evaluation.answer_rows import answer_row
from memfactory.evaluation.bank_folder import BankFolder
from memfactory.evaluation.episodes import play_episodes
from memfactory.evaluation.fingerprint import digest, sampling_fingerprint
from memfactory.evaluation.questions import conversation_question, document_question, row_questions
from memfactory.evaluation.settings import EvaluationSettings, episode_window
from memfactory.evaluation.targets import without_unused
from memfactory.files.json_lines import JsonLinesWriter, read_json_lines
from memfactory.files.locks import file_lock
from memfactory.rollout import texts_read
from memfactory.types import Reading, SamplingParams, Task, Turn

GREEDY = SamplingParams(temperature=0.0)
EVAL_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class InferRequest:
    """A question about `documents` or a `conversation`, or a file of rows with their own questions and texts.

    >>> InferRequest("Where does Anna live?", documents=["anna.txt"]).rows is None
    True

    Paths are texts or `Path`s; "-" is standard input. A conversation is a JSON file with a list of utterances, or a row
    that holds one. Raises ConfigError for a combination that has no meaning.
    """

    question: str | None = None
    documents: str | Path | Sequence[str | Path] = ()
    conversation: str | Path | None = None
    rows: str | Path | None = None

    def __post_init__(self) -> None:
        question, texts = self.question, bool(self.documents) or self.conversation is not None
        problems = []
        if question is None and self.rows is None:
            problems.append("nothing to answer: give --question (and --document FILE), or --input ROWS.jsonl")
        if self.rows is not None and (question is not None or texts):
            problems.append(
                "--input brings its own questions and texts; leave out --question, --document and --conversation"
            )
        elif question is None and texts:
            problems.append(f"{'--document' if self.documents else '--conversation'} needs a --question")
        if self.documents and self.conversation is not None:
            problems.append("--document and --conversation exclude each other")
        if question is not None and not question.strip():
            problems.append("--question is empty")
        if problems:
            raise ConfigError(problems)

    def tasks(self, resolved: Resolved) -> tuple[tuple[Task, ...], tuple[str, ...]]:
        """The tasks to play, and a message for every row that cannot be used. Raises DataError for unreadable files."""
        if self.rows is not None:
            return row_questions(resolved, Path(self.rows))
        if self.conversation is not None:
            return (conversation_question(resolved, self.question or "", Path(self.conversation)),), ()
        documents = [self.documents] if isinstance(self.documents, str | Path) else self.documents
        return document_question(self.question or "", [Path(path) for path in documents]), ()


@dataclass(frozen=True)
class Answer:
    """An answer, the memory it rests on and the turns that led to it.

    `text` is None if the reply has no answer in the requested form; `str(answer)` is the text. `memory` is the text
    memory, or the items of the bank, one per line. `record` is the row that `infer` writes to a file: the answer with
    its turns, token counts, memory items and citations.

    >>> print(Answer("q1", "Where does Anna live?", "Oslo", "- Anna lives in Oslo."))
    Oslo
    """

    id: str
    question: str
    text: str | None
    memory: str = ""
    turns: tuple[Turn, ...] = ()
    record: Mapping[str, object] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.text or ""

    @staticmethod
    def of(episode: Episode, configuration: str | None = None) -> Answer:
        """The answer of a finished episode."""
        task, record = episode.task, answer_row(episode, configuration)
        return Answer(task.id, task.question, episode.answer, episode.memory, tuple(episode.turns), record)


class InferWatcher:
    """Receives the events of an inference while it runs; every method may be overridden.

    >>> class Printer(InferWatcher):
    ...     def answered(self, answer):
    ...         print(answer)
    >>> Printer().answered(Answer("q1", "Where does Anna live?", "Oslo"))
    Oslo
    """

    def left_out(self, problem: str) -> None:
        """A row cannot be used."""

    def started(self, total: int) -> None:
        """`total` tasks are about to be played."""

    def turn(self, episode: Episode, turn: Turn) -> None:
        """A turn has ended and the agent has received its reply."""

    def progressed(self, done: int, total: int) -> None:
        """`done` of `total` tasks are finished."""

    def answered(self, answer: Answer) -> None:
        """A task is answered."""

    def failed(self, task_id: str, reason: str) -> None:
        """A task has no answer, because an engine failed or refused its prompt."""


@dataclass(frozen=True)
class InferOptions:
    """How to infer.

    `output` is a file that receives one JSON object per answer; rows that it answers already are not played again.
    `bank` is the folder of a memory bank: the agent starts from it and its changes are saved there. Replies are greedy
    unless `sampling` says otherwise. `watcher` receives answers as they come.

    >>> InferOptions(sampling=SamplingParams(temperature=0.7)).output is None
    True
    """

    output: str | Path | None = None
    bank: str | Path | None = None
    sampling: SamplingParams = GREEDY
    watcher: InferWatcher = field(default_factory=InferWatcher)


@dataclass(frozen=True)
class InferResult:
    """The new answers of an inference, in the order they were finished.

    `answered_before` counts the rows that the output file already answered. `problems` names the rows that cannot be
    used, `failures` maps the ids of unanswered tasks to the reason, and `notes` tell which parts of long texts were
    not read, and how many replies never ended their thinking.

    >>> InferResult((Answer("q1", "Where does Anna live?", "Oslo"),)).complete
    True
    """

    answers: tuple[Answer, ...]
    answered_before: int = 0
    problems: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every row has an answer."""
        return not self.problems and not self.failures


def run_inference(resolved: Resolved, request: InferRequest, options: InferOptions = InferOptions()) -> InferResult:
    """Answer `request` with the agent that `resolved` describes.

    Raises ConfigError for options that do not fit and for an `output` of another model or agent, DataError for a file
    that cannot be read.
    """
    name = f"--output {options.output}"
    with nullcontext() if options.output is None else file_lock(Path(options.output), name=name):
        return _run(resolved, request, options)


def _run(resolved: Resolved, request: InferRequest, options: InferOptions) -> InferResult:
    _refuse_eval_sampling(resolved)
    resolved, limits = reading_all(without_unused(resolved, {}))
    tasks, problems = request.tasks(resolved)
    for problem in problems:
        options.watcher.left_out(problem)
    opened = nullcontext() if options.bank is None else BankFolder.open(Path(options.bank), resolved.config.agent)
    with opened as bank:
        fingerprint: Mapping[str, str | None] = sampling_fingerprint(
            resolved, options.sampling, resolved.config.eval.seed
        )
        if bank is not None:
            tasks, fingerprint = bank.bind_tasks(tasks, fingerprint, of_rows=request.rows is not None)
        configuration = digest(fingerprint)
        missing = tasks if options.output is None else _unanswered(tasks, Path(options.output), configuration)
        episodes = _played(resolved, missing, options, bank) if missing else iter(())
        answers, failures, readings = _collected(episodes, options, configuration)
    return InferResult(
        answers=tuple(answers),
        answered_before=len(tasks) - len(missing),
        problems=tuple(problems),
        failures=failures,
        notes=(*_reading_notes(resolved, readings, limits), *_thinking_notes(answers)),
    )


def _collected(
    episodes: Iterator[Episode], options: InferOptions, configuration: str
) -> tuple[list[Answer], dict[str, str], dict[str, Reading | None]]:
    """Write and report each episode as it finishes: the answers, the failures and the readings by task."""
    answers: list[Answer] = []
    failures: dict[str, str] = {}
    readings: dict[str, Reading | None] = {}
    with nullcontext() if options.output is None else JsonLinesWriter(Path(options.output)) as file:
        for episode in episodes:
            if episode.failure is not None:
                failures[episode.task.id] = episode.failure
                options.watcher.failed(episode.task.id, episode.failure)
                continue
            readings[episode.task.id] = episode.reading
            answer = Answer.of(episode, configuration)
            if file is not None:
                file.append(dict(answer.record))
            answers.append(answer)
            options.watcher.answered(answer)
    return answers, failures, readings


def _played(
    resolved: Resolved, tasks: Sequence[Task], options: InferOptions, bank: BankFolder | None
) -> Iterator[Episode]:
    """Each task's finished episode. The bank is saved after each episode that did not fail."""
    runtime = build_runtime(resolved, training=False)
    watcher, config = options.watcher, resolved.config
    try:
        if bank is not None:
            memory = bank.load(runtime.agent.banks)
            tasks = [replace(task, memory=memory) for task in tasks]
        settings = EvaluationSettings(
            seed=config.eval.seed, sampling_params=options.sampling, window=episode_window(config.engine)
        )
        watcher.started(len(tasks))
        played = play_episodes(runtime, [(task, 0) for task in tasks], settings, on_turn=watcher.turn)
        with closing(played):
            for done, episode in enumerate(played, start=1):
                watcher.progressed(done, len(tasks))
                if bank is not None and episode.failure is None:
                    bank.save(episode.bank)
                yield episode
    finally:
        runtime.close()


def _reading_notes(
    resolved: Resolved, readings: Mapping[str, Reading | None], limits: Sequence[Limit]
) -> Iterator[str]:
    """Notes on texts that were read in part, or whole where training and evaluation read a part."""
    options = {slot: module.options for slot, module in resolved.config.agent.modules.items()}
    if (cut := texts_read(readings).warning(options)) is not None:
        yield cut
    longest = max((reading.read for reading in readings.values() if reading is not None), default=0)
    for limit in limits:
        if longest > limit.tokens:
            yield (
                f"read whole: up to {longest:,} tokens, where training and evaluation read {limit.tokens:,} of a text; "
                f"{limit.key}={limit.value} on the command line does so here too"
            )


def _thinking_notes(answers: Sequence[Answer]) -> Iterator[str]:
    """A note on replies that were cut inside thinking."""
    counts = [answer.record.get("unfinished_thinking") for answer in answers]
    unfinished = sum(count for count in counts if isinstance(count, int))
    if unfinished:
        yield (
            f"replies that never ended their thinking: {unfinished}. They changed no memory and gave no answer; allow "
            "longer replies (memory_tokens, answer_tokens, max_tokens of the agent's modules), or turn thinking off "
            "where the chat template can (model.template_options.enable_thinking=false)"
        )


def _refuse_eval_sampling(resolved: Resolved) -> None:
    """Raise ConfigError for sampling options of `eval` among the overrides: they would have no effect here."""
    origins = {name: resolved.origins.get(f"eval.{name}", "") for name in EVAL_SAMPLING}
    problems = [
        f"{origin}: it sets the sampling of evaluations, and infer is greedy; give --{name.replace('_', '-')}"
        for name, origin in origins.items()
        if origin.startswith(COMMAND_LINE_PREFIX)
    ]
    if problems:
        raise ConfigError(problems)


def _unanswered(tasks: Sequence[Task], output: Path, configuration: str) -> tuple[Task, ...]:
    """The tasks that `output` does not answer yet. Raises ConfigError if its answers belong to something else."""
    try:
        JsonLinesWriter(output).close()
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written to: {error.strerror or error}") from None
    questions: dict[object, object] = {}
    for row in read_json_lines(output):
        questions[row.get("id")] = row.get("question")
        if row.get("configuration") != configuration:
            raise ConfigError(
                f"{output} holds answers of another model, agent or sampling parameters (configuration "
                f"{row.get('configuration')}, now {configuration}). Name another --output, or delete it."
            )
    changed = [task.id for task in tasks if questions.get(task.id, task.question) != task.question]
    if changed:
        raise ConfigError(
            f"{output} answers other questions under the ids {', '.join(changed[:5])}. "
            "Name another --output, or delete it."
        )
    return tuple(task for task in tasks if task.id not in questions)

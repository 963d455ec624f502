"""`memfactory infer`: answer one question about documents, or every row of a file, with a trained agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

from memfactory.build import build_runtime
from memfactory.config import Resolved
from memfactory.config.reading import Limit, reading_all
from memfactory.console import Console
from memfactory.episode import Episode
from memfactory.errors import ConfigError
from memfactory.evaluation.answer_rows import answer_row
from memfactory.evaluation.bank_folder import BankFolder
from memfactory.evaluation.episodes import play_episodes
from memfactory.evaluation.fingerprint import digest, sampling_fingerprint
from memfactory.evaluation.memory_view import MemoryView
from memfactory.evaluation.progress import progress_display
from memfactory.evaluation.questions import conversation_question, document_question, row_questions
from memfactory.evaluation.settings import EvaluationSettings, episode_window
from memfactory.evaluation.targets import without_unused
from memfactory.files.json_lines import JsonLinesWriter, json_line, read_json_lines
from memfactory.rollout import texts_read
from memfactory.types import Reading, SamplingParams, Task

GREEDY = SamplingParams(temperature=0.0)
IGNORED = ("temperature", "top_p", "top_k")


def run_inference(
    resolved: Resolved,
    *,
    question: str | None = None,
    documents: Sequence[Path] = (),
    conversation: Path | None = None,
    input: Path | None = None,
    output: Path | None = None,
    bank: Path | None = None,
    sampling_params: SamplingParams = GREEDY,
    as_json: bool = False,
    show_memory: bool = False,
    console: Console,
) -> int:
    """Answer `question` about `documents` ("-": stdin) or a `conversation`, or each row of `input`; the exit code.

    A conversation is a file with a list of utterances, or with a row that holds one. Answers go to the file `output`,
    one JSON object a row (append-only: rows that it answers already are not played again), or else to `console`: the
    bare answer of a question (`as_json`: all that it rests on), JSON lines for rows. The memory (`show_memory`) and
    progress go to stderr. The memory bank in the folder `bank` is what the agent begins with, and what it has become is
    kept there. Rows that cannot be used, and those whose answer a helper's failure prevented, are reported and left
    out, and make the exit code 1. Raises ConfigError for options that do not fit and for an `output` of another model
    or agent, DataError for a file that cannot be read.
    """
    errors = Console(stderr=True)
    _refuse_misfits(question, documents, conversation, input)
    _refuse_ignored(resolved)
    resolved, limits = reading_all(without_unused(resolved, {}))
    readings: dict[str, Reading | None] = {}
    if input is not None:
        tasks, problems = row_questions(resolved, input)
    elif conversation is not None:
        tasks, problems = (conversation_question(resolved, question or "", conversation),), ()
    else:
        tasks, problems = document_question(question or "", documents), ()
    for problem in problems:
        errors.print(f"left out: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    with nullcontext() if bank is None else BankFolder.open(bank, resolved.config.agent) as kept:
        named: Mapping[str, str | None] = sampling_fingerprint(resolved, sampling_params, resolved.config.eval.seed)
        if kept is not None:
            tasks, named = kept.bind_tasks(tasks, named, of_rows=input is not None)
        configuration = digest(named)
        missing = tasks if output is None else _unanswered(tasks, output, configuration)
        failed = 0
        if missing:
            with nullcontext() if output is None else JsonLinesWriter(output) as file:
                for episode in _played(resolved, missing, sampling_params, kept, errors, show_memory):
                    if episode.failure is not None:
                        failed += 1
                        told = f"not answered: {episode.task.id}: {episode.failure}"
                        errors.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
                        continue
                    readings[episode.task.id] = episode.reading
                    row = answer_row(episode, configuration)
                    if file is not None:
                        file.append(row)
                    else:
                        bare = input is None and not as_json
                        console.out(f"{episode.answer or ''}\n" if bare else json_line(row), end="", highlight=False)
    for note in _of_reading(resolved, readings, limits):
        errors.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        told = f"{output}: {len(missing) - failed} answers written, {len(tasks) - len(missing)} were there"
        errors.print(told, highlight=False, markup=False, soft_wrap=True)
    return 1 if problems or failed else 0


def _of_reading(resolved: Resolved, readings: Mapping[str, Reading | None], limits: Sequence[Limit]) -> Iterator[str]:
    """What is to be said of texts of which part was left out, or would have been in training and evaluation."""
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


def _refuse_ignored(resolved: Resolved) -> None:
    """The section `eval` says how evaluations sample: what of it is asked for here would be ignored."""
    given = {name: resolved.origins.get(f"eval.{name}", "") for name in IGNORED}
    problems = [
        f"{origin}: `eval` says how evaluations sample, and infer is greedy; give --{name.replace('_', '-')}"
        for name, origin in given.items()
        if origin.startswith("command line")
    ]
    if problems:
        raise ConfigError(problems)


def _refuse_misfits(
    question: str | None, documents: Sequence[Path], conversation: Path | None, input: Path | None
) -> None:
    problems = []
    if question is None and input is None:
        problems.append("nothing to answer: give --question (and --document FILE), or --input ROWS.jsonl")
    if input is not None and (question is not None or documents or conversation is not None):
        problems.append(
            "--input brings its own questions and texts; leave out --question, --document and --conversation"
        )
    elif question is None and (documents or conversation is not None):
        problems.append(f"{'--document' if documents else '--conversation'} needs a --question")
    if documents and conversation is not None:
        problems.append("--document and --conversation are two ways to say what is read; choose one")
    if question is not None and not question.strip():
        problems.append("--question is empty")
    if problems:
        raise ConfigError(problems)


def _unanswered(tasks: Sequence[Task], output: Path, configuration: str) -> tuple[Task, ...]:
    """The tasks that `output` does not answer yet. Raises ConfigError where its answers are of something else."""
    try:
        JsonLinesWriter(output).close()
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written to: {error.strerror or error}") from None
    answered: dict[object, object] = {}
    for row in read_json_lines(output):
        answered[row.get("id")] = row.get("question")
        if row.get("configuration") != configuration:
            raise ConfigError(
                f"{output} holds answers of another model, agent or sampling parameters (configuration "
                f"{row.get('configuration')}, now {configuration}). Name another --output, or delete it."
            )
    changed = [task.id for task in tasks if answered.get(task.id, task.question) != task.question]
    if changed:
        raise ConfigError(
            f"{output} answers other questions under the ids {', '.join(changed[:5])}. "
            "Name another --output, or delete it."
        )
    return tuple(task for task in tasks if task.id not in answered)


def _played(
    resolved: Resolved,
    tasks: Sequence[Task],
    sampling_params: SamplingParams,
    kept: BankFolder | None,
    errors: Console,
    show_memory: bool,
) -> Iterator[Episode]:
    """Each task's finished episode, with its memory or the progress shown on the way; what is kept is then kept."""
    stack = build_runtime(resolved, training=False)
    shown = nullcontext(None) if show_memory or len(tasks) == 1 else progress_display(errors, "answering")
    try:
        if kept is not None:
            memory = kept.load(stack.agent.banks)
            tasks = [replace(task, memory=memory) for task in tasks]
        with shown as on_progress:
            config = resolved.config
            settings = EvaluationSettings(
                seed=config.eval.seed, sampling_params=sampling_params, window=episode_window(config.engine)
            )
            on_turn = MemoryView(errors, named=len(tasks) > 1).show if show_memory else None
            played = play_episodes(stack, [(task, 0) for task in tasks], settings, on_turn=on_turn)
            with closing(played):
                for done, episode in enumerate(played, start=1):
                    if on_progress is not None:
                        on_progress(done, len(tasks))
                    if kept is not None and episode.failure is None:
                        kept.save(episode.bank)
                    yield episode
    finally:
        stack.close()

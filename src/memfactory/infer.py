"""`memfactory infer`: answer one question about documents, or every row of a file, with a trained agent."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from memfactory.build import build_stack
from memfactory.config import Resolved
from memfactory.console import Console
from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.data.rows import find_file, read_rows
from memfactory.envs.base import Environment
from memfactory.errors import ConfigError, DataError
from memfactory.evaluate.attempts import attempt, attempts_under_way
from memfactory.evaluate.fingerprint import digest, sampling_fingerprint
from memfactory.evaluate.memory_view import MemoryView
from memfactory.evaluate.progress import shown_progress
from memfactory.evaluate.records import item_json, turn_record
from memfactory.evaluate.targets import reading_env, without_unused
from memfactory.files import JsonLinesWriter, json_line, read_json_lines
from memfactory.types import Decoding, Episode, Task

NO_GOLD = {"answers": ["?"]}


def run_inference(
    resolved: Resolved,
    *,
    question: str | None = None,
    documents: Sequence[Path] = (),
    conversation: Path | None = None,
    input: Path | None = None,
    output: Path | None = None,
    show_memory: bool = False,
    console: Console,
) -> int:
    """Answer `question` about `documents` ("-": stdin) or a `conversation`, or each row of `input`; the exit code.

    A conversation is a file with a list of utterances, or with a row that holds one. Answers go to the file `output`,
    one JSON object a row (append-only: rows that it answers already are not played again), or else to `console`: the
    bare answer of a question, JSON lines for rows. The memory (`show_memory`) and progress go to stderr. Rows that
    cannot be used, and those whose answer a helper's failure prevented, are reported and left out, and make the exit
    code 1. Raises ConfigError for options that do not fit and for an `output` of another model or agent, DataError for
    a file that cannot be read.
    """
    errors = Console(stderr=True)
    _refuse_misfits(question, documents, conversation, input)
    resolved = without_unused(resolved, {})
    if input is not None:
        tasks, problems = _rows(resolved, input)
    elif conversation is not None:
        tasks, problems = (_about(resolved, question or "", conversation),), ()
    else:
        tasks, problems = _asked(question or "", documents), ()
    for problem in problems:
        errors.print(f"left out: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    configuration = digest(sampling_fingerprint(resolved, _decoding(resolved), resolved.config.eval.seed))
    missing = tasks if output is None else _unanswered(tasks, output, configuration)
    failed = 0
    if missing:
        with nullcontext() if output is None else JsonLinesWriter(output) as file:
            for episode in _played(resolved, missing, errors, show_memory):
                if episode.failure is not None:
                    failed += 1
                    told = f"not answered: {episode.task.id}: {episode.failure}"
                    errors.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
                    continue
                row = _row(episode, configuration)
                if file is not None:
                    file.append(row)
                else:
                    said = f"{episode.answer or ''}\n" if input is None else json_line(row)
                    console.out(said, end="", highlight=False)
    if output is not None:
        told = f"{output}: {len(missing) - failed} answers written, {len(tasks) - len(missing)} were there"
        errors.print(told, highlight=False, markup=False, soft_wrap=True)
    return 1 if problems or failed else 0


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


def _asked(question: str, documents: Sequence[Path]) -> tuple[Task, ...]:
    """The one question as a task; several documents are numbered as in MemAgent's data."""
    texts = [_read(path) for path in documents]
    numbered = [f"Document {number}:\n{text}" for number, text in enumerate(texts, start=1)]
    context = texts[0] if len(texts) == 1 else "\n\n".join(numbered)
    return (Task(f"question-{digest([question, context])}", question, (), context),)


def _about(resolved: Resolved, question: str, path: Path) -> Task:
    """The question about the conversation in a file: a list of utterances, or a row of the environment's own form."""
    text = _read(path, "--conversation")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"--conversation {path} is not JSON: {error}") from None
    row = {"conversation": value} if isinstance(value, list) else value
    if not isinstance(row, dict):
        raise DataError(f"--conversation {path} should be a list of utterances or a row, not {type(value).__name__}")
    env = reading_env(resolved)
    named = {"id": f"question-{digest([question, value])}", "question": question, **NO_GOLD}
    # The row's own question must not come first under another of its names.
    given = {name: held for name, held in row.items() if name not in ("query", "q")}
    task = env.task(Row({**given, **named}, f"--conversation {path}"))
    if not task.conversation and not task.memory:
        if not any(row.values()):
            raise DataError(f"--conversation {path} holds no utterance")
        raise ConfigError(
            f"--conversation: the environment {resolved.config.env.name!r} reads no conversations; "
            "memory_bank does (env=memory_bank)"
        )
    return task


def _read(path: Path, option: str = "--document") -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{option} {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{option} {path} is not text in UTF-8: {error}") from None


class _InputRows(Dataset):
    """The rows of a file. A row that lacks gold answers gets one that nobody looks at: answers are asked for here."""

    def __init__(self, path: Path, env: Environment) -> None:
        super().__init__(DatasetOptions(skip_bad_rows=True), Path())
        self.path = path
        self.env = env

    @property
    def source(self) -> str:
        return str(self.path)

    def rows(self) -> Sequence[Row]:
        rows = read_rows(find_file(str(self.path), self.base_dir), self.source)
        return [row if self._is_whole(row) else replace(row, values={**row.values, **NO_GOLD}) for row in rows]

    def _is_whole(self, row: Row) -> bool:
        try:
            self.env.task(row)
        except DataError:
            return False
        return True


def _rows(resolved: Resolved, input: Path) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """The tasks of the rows that can be used, and a message for each of the others."""
    env = reading_env(resolved)
    found = env.tasks(_InputRows(input, env))
    return found.tasks, found.skipped


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
                f"{output} holds answers of another model, agent or decoding (configuration "
                f"{row.get('configuration')}, now {configuration}). Name another --output, or delete it."
            )
    changed = [task.id for task in tasks if answered.get(task.id, task.question) != task.question]
    if changed:
        raise ConfigError(
            f"{output} answers other questions under the ids {', '.join(changed[:5])}. "
            "Name another --output, or delete it."
        )
    return tuple(task for task in tasks if task.id not in answered)


def _decoding(resolved: Resolved) -> Decoding:
    settings = resolved.config.eval
    return Decoding(settings.temperature, settings.top_p, settings.top_k)


def _played(resolved: Resolved, tasks: Sequence[Task], errors: Console, show_memory: bool) -> Iterator[Episode]:
    """Each task's finished episode, with its memory or the progress shown on the way."""
    stack = build_stack(resolved, training=False)
    shown = nullcontext(None) if show_memory or len(tasks) == 1 else shown_progress(errors, "answering")
    try:
        with shown as on_progress:
            played = attempt(
                stack.agent,
                [(task, 0) for task in tasks],
                stack.engines,
                decodings=stack.drawn_with(_decoding(resolved)),
                seed=resolved.config.eval.seed,
                window=attempts_under_way(resolved.config.engine),
                on_turn=MemoryView(errors, named=len(tasks) > 1).show if show_memory else None,
            )
            with closing(played):
                for done, episode in enumerate(played, start=1):
                    if on_progress is not None:
                        on_progress(done, len(tasks))
                    yield episode
    finally:
        stack.close()


def _row(episode: Episode, configuration: str) -> dict[str, object]:
    """What is written of an answer; of an agent with a memory bank also what was retrieved and cited."""
    found = {
        "retrieved": [item_json(item) for item in episode.retrieved],
        "citations": None if episode.citations is None else list(episode.citations),
    }
    return {
        "id": episode.task.id,
        "question": episode.task.question,
        "answer": episode.answer,
        "memory": episode.memory,
        **({} if episode.bank is None else found),
        "turns": [asdict(turn_record(turn)) for turn in episode.turns],
        "configuration": configuration,
    }

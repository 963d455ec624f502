"""`memfactory infer`: answer one question about documents, or every row of a file, with a trained agent."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from memfactory.build import build_stack
from memfactory.config import Resolved
from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.data.rows import find_file, read_rows
from memfactory.envs.base import Environment
from memfactory.errors import ConfigError, DataError
from memfactory.evaluate.attempts import attempt, attempts_under_way
from memfactory.evaluate.fingerprint import digest, sampling_fingerprint
from memfactory.evaluate.progress import shown_progress
from memfactory.evaluate.records import turn_record
from memfactory.evaluate.targets import reading_env, without_unused
from memfactory.files import JsonLinesWriter, json_line, read_json_lines
from memfactory.types import Decoding, Episode, Task, Turn

NO_GOLD = {"answers": ["?"]}


def run_inference(
    resolved: Resolved,
    *,
    question: str | None = None,
    documents: Sequence[Path] = (),
    input: Path | None = None,
    output: Path | None = None,
    show_memory: bool = False,
    console: Console,
) -> int:
    """Answer `question` about `documents` ("-": stdin), or every row of the file `input`; the exit code.

    Answers go to the file `output`, one JSON object a row (append-only: rows that it answers already are not played
    again), or else to `console`: the bare answer of a question, JSON lines for rows. The memory (`show_memory`) and
    progress go to stderr. Rows that cannot be used are reported with their numbers, left out, and make the exit
    code 1. Raises ConfigError for options that do not fit and for an `output` of another model or
    agent, DataError for a file that cannot be read.
    """
    errors = Console(stderr=True)
    _refuse_misfits(question, documents, input)
    resolved = without_unused(resolved, {})
    tasks, problems = _asked(question, documents) if input is None else _rows(resolved, input)
    for problem in problems:
        errors.print(f"left out: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    configuration = digest(sampling_fingerprint(resolved, _decoding(resolved), resolved.config.eval.seed))
    missing = tasks if output is None else _unanswered(tasks, output, configuration)
    if missing:
        with nullcontext() if output is None else JsonLinesWriter(output) as file:
            for episode in _played(resolved, missing, errors, show_memory):
                row = _row(episode, configuration)
                if file is not None:
                    file.append(row)
                else:
                    said = f"{episode.answer or ''}\n" if input is None else json_line(row)
                    console.out(said, end="", highlight=False)
    if output is not None:
        told = f"{output}: {len(missing)} answers written, {len(tasks) - len(missing)} were there"
        errors.print(told, highlight=False, markup=False, soft_wrap=True)
    return 1 if problems else 0


def _refuse_misfits(question: str | None, documents: Sequence[Path], input: Path | None) -> None:
    problems = []
    if question is None and input is None:
        problems.append("nothing to answer: give --question (and --document FILE), or --input ROWS.jsonl")
    if input is not None and (question is not None or documents):
        problems.append("--input brings its own questions and texts; leave out --question and --document")
    elif question is None and documents:
        problems.append("--document needs a --question")
    if question is not None and not question.strip():
        problems.append("--question is empty")
    if problems:
        raise ConfigError(problems)


def _asked(question: str | None, documents: Sequence[Path]) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """The one question as a task; several documents are numbered as in MemAgent's data."""
    assert question is not None
    texts = [_read(path) for path in documents]
    numbered = [f"Document {number}:\n{text}" for number, text in enumerate(texts, start=1)]
    context = texts[0] if len(texts) == 1 else "\n\n".join(numbered)
    return (Task(f"question-{digest([question, context])}", question, (), context),), ()


def _read(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--document {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--document {path} is not text in UTF-8: {error}") from None


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
    return {
        "id": episode.task.id,
        "question": episode.task.question,
        "answer": episode.answer,
        "memory": episode.memory,
        "turns": [asdict(turn_record(turn)) for turn in episode.turns],
        "configuration": configuration,
    }


class MemoryView:
    """Prints each episode's memory whenever it has changed: new words green, words that went struck out in red."""

    def __init__(self, console: Console, *, named: bool) -> None:
        self.console = console
        self.named = named
        self._last: dict[str, str] = {}

    def show(self, episode: Episode, turn: Turn) -> None:
        """To be told of every turn, once the agent has taken it in."""
        last = self._last.get(episode.task.id, "")
        if episode.memory == last:
            return
        self._last[episode.task.id] = episode.memory
        name = f"{episode.task.id}, " if self.named else ""
        cut = " (cut by length)" if turn.reply.stop == "length" else ""
        title = f"{name}turn {len(episode.turns)} ({turn.step}): {len(episode.memory.split())} words{cut}"
        self.console.rule(Text(title), align="left")
        self.console.print(word_difference(last, episode.memory) if self.console.is_terminal else Text(episode.memory))


def word_difference(before: str, after: str) -> Text:
    """`after` with its new words in green and the words of `before` that went struck out in red."""
    old, new = re.findall(r"\S+\s*", before), re.findall(r"\S+\s*", after)
    text = Text()
    matcher = difflib.SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], False)
    for kind, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if kind in ("delete", "replace"):
            text.append("".join(old[old_from:old_to]).rstrip(), style="red strike")
            text.append(" ")
        if kind != "delete":
            text.append("".join(new[new_from:new_to]), style="" if kind == "equal" else "green")
    return text

"""The questions of `infer` as tasks: one about documents or a conversation, or the rows of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memfactory.build import reading_env
from memfactory.config import Resolved
from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.data.rows import decoded, find_file, parse_json, read_rows, read_text
from memfactory.envs.base import Environment
from memfactory.errors import ConfigError, DataError
from memfactory.evaluation.fingerprint import digest
from memfactory.types import Task

NO_GOLD = {"answers": ["?"]}


def document_question(question: str, documents: Sequence[Path]) -> tuple[Task, ...]:
    """The question about documents as a task. Several documents are numbered as in MemAgent's data."""
    texts = [_read(path) for path in documents]
    numbered = [f"Document {number}:\n{text}" for number, text in enumerate(texts, start=1)]
    context = texts[0] if len(texts) == 1 else "\n\n".join(numbered)
    return (Task(f"question-{digest([question, context])}", question, (), context),)


def conversation_question(resolved: Resolved, question: str, path: Path) -> Task:
    """The question about the conversation in a file: a list of utterances, or a row in the environment's own form."""
    value = parse_json(_read(path, "--conversation"), f"--conversation {path}")
    row = {"conversation": value} if isinstance(value, list) else value
    if not isinstance(row, dict):
        raise DataError(f"--conversation {path} should be a list of utterances or a row, not {type(value).__name__}")
    env = reading_env(resolved)
    named = {"id": f"question-{digest([question, value])}", "question": question, **NO_GOLD}
    # Other names of the row's own question would come before this one.
    others = {name: value for name, value in row.items() if name not in ("query", "q")}
    misfit = (
        f"--conversation: the environment {resolved.config.env.name!r} reads no conversations; "
        "memory_bank does (env=memory_bank)"
    )
    try:
        task = env.task(Row({**others, **named}, f"--conversation {path}"))
    except DataError:
        if _reads_texts(env):
            raise ConfigError(misfit) from None
        raise
    if not task.conversation and not task.memory:
        if not any(row.values()):
            raise DataError(f"--conversation {path} holds no utterance")
        raise ConfigError(misfit)
    return task


def _reads_texts(env: Environment) -> bool:
    """Whether the environment reads rows with a text instead of a conversation."""
    try:
        task = env.task(Row({"question": "?", "context": "A text.", **NO_GOLD}, "a row"))
    except DataError:
        return False
    return bool(task.context) and not task.conversation


def _read(path: Path, option: str = "--document") -> str:
    name = f"{option} {path}"
    return decoded(sys.stdin.buffer.read(), name) if str(path) == "-" else read_text(path, name)


class _InputRows(Dataset):
    """The rows of a file. A row without gold answers gets a placeholder, which no reward reads."""

    def __init__(self, path: Path, env: Environment) -> None:
        super().__init__(DatasetOptions(skip_bad_rows=True), Path())
        self.path = path
        self.env = env

    @property
    def source(self) -> str:
        return str(self.path)

    def rows(self) -> Sequence[Row]:
        rows = read_rows(find_file(str(self.path), self.base_dir), self.source)
        return [row if self._is_complete(row) else replace(row, values={**row.values, **NO_GOLD}) for row in rows]

    def _is_complete(self, row: Row) -> bool:
        try:
            self.env.task(row)
        except DataError:
            return False
        return True


def row_questions(resolved: Resolved, input: Path) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """The tasks of the usable rows, and a message for each of the other rows."""
    env = reading_env(resolved)
    tasks = env.tasks(_InputRows(input, env))
    return tasks.tasks, tasks.skipped

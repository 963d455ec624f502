"""The dataset `longmemeval`, and `memfactory data longmemeval`: questions about a user's chats (arXiv 2410.10813).

The three files (oracle, s, m) have one form. A row is a question with its own history: the sessions by date (the
oracle file does not order them), each turn with the id "<session>:<number>". Times stay as the file writes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from memfactory.data.base import Dataset, DatasetOptions, GeneratedRows, Row
from memfactory.data.fields import AnyText, RowModel, Text, TextOrNumber, broken_rule, expected, read
from memfactory.data.published import Published, find_published, read_published
from memfactory.data.writing import OnProgress, Report, write_rows
from memfactory.errors import ConfigError, DataError
from memfactory.registry import DATASETS, Options

QuestionType = Literal[
    "single-session-user",
    "single-session-assistant",
    "single-session-preference",
    "multi-session",
    "temporal-reasoning",
    "knowledge-update",
]
Values = dict[str, object]
ABSTENTION = "_abs"
WHERE = (
    "LongMemEval is longmemeval_oracle.json, longmemeval_s_cleaned.json and longmemeval_m_cleaned.json of "
    "https://huggingface.co/datasets/xiaowu0162/longmemeval-cleaned (MIT)"
)
FILE = Published(
    "LongMemEval",
    "a list of questions with `question_id`, `question_date` and `haystack_sessions`",
    WHERE,
    "questions",
    frozenset({"question_id", "question_date", "haystack_sessions"}),
)
DATE = re.compile(r"(\d{4}/\d{2}/\d{2}) \(\w+\) (\d{2}:\d{2})")


class LongMemEvalForm(Options):
    """The selection of rows and the unit of evidence."""

    question_types: list[QuestionType] | None = Field(None, min_length=1)
    """Question types to keep; null keeps all six."""
    evidence: Literal["turns", "sessions"] = "turns"
    """Gold evidence: the turns marked as evidence, or all turns of the evidence sessions (for metrics by session)."""


class LongMemEvalOptions(DatasetOptions, LongMemEvalForm):
    """Options of `longmemeval`."""

    path: str
    """LongMemEval's file; relative to the working directory, else to the config's folder."""


@DATASETS.register("longmemeval")
class LongMemEvalDataset(Dataset[LongMemEvalOptions]):
    """LongMemEval: questions about a user's chat history with an assistant, one history for each question."""

    @property
    def source(self) -> str:
        return self.options.path

    def rows(self) -> Sequence[Row]:
        """The questions' rows, made on access: a history is long."""
        return rows_of(_read(self.options.path, self.base_dir), self.options, self.options.limit)


class _Turn(RowModel):
    role: AnyText
    content: AnyText
    has_answer: object = None


def _date(value: str) -> str:
    if not DATE.match(value):
        raise expected("a date such as '2023/05/30 (Tue) 08:08'")
    return value


class LongMemEvalRow(RowModel):
    """A row as LongMemEval publishes it."""

    question_id: Text
    question_type: Text
    question: Text
    question_date: Text
    answer: TextOrNumber = Field(description="a text or a number")
    answer_session_ids: list[AnyText]
    haystack_session_ids: list[AnyText]
    haystack_dates: list[Annotated[AnyText, AfterValidator(_date)]]
    haystack_sessions: list[list[_Turn]] = Field(description="a list of sessions")

    @model_validator(mode="after")
    def _lists_have_one_length(self) -> LongMemEvalRow:
        lengths = [len(self.haystack_sessions), len(self.haystack_session_ids), len(self.haystack_dates)]
        if len(set(lengths)) > 1:
            raise broken_rule(
                "haystack_sessions, haystack_session_ids and haystack_dates should be lists of one length, got lengths "
                f"{lengths[0]}, {lengths[1]} and {lengths[2]}"
            )
        return self


@dataclass(frozen=True)
class _Session:
    id: str
    date: str
    turns: Sequence[_Turn]


def rows_of(rows: Sequence[Row], form: LongMemEvalForm, limit: int | None = None) -> Sequence[Row]:
    """The rows of the form's question types. A row that does not fit is a row with a problem."""
    types = form.question_types
    selected = [row for row in rows if row.problem or types is None or row.values.get("question_type") in types][:limit]
    return GeneratedRows(lambda index: _row(selected[index], form), len(selected))


def build_longmemeval(
    file: Path, output: Path, form: LongMemEvalForm, *, on_progress: OnProgress | None = None
) -> Report:
    """Write `<name of the file>.jsonl` to the folder `output`. Raises DataError for the first row that does not fit."""
    path = output / f"{file.stem}.jsonl"
    if path.resolve() == file.resolve():
        raise ConfigError(f"{file} would be overwritten by its own rows; give another folder by --output")
    rows = rows_of(_read(str(file), Path()), form)
    if not rows:
        raise DataError(f"{file} has no questions of the types {', '.join(form.question_types or ())}")
    files = (write_rows(path, (_usable(row) for row in rows), len(rows), on_progress=on_progress),)
    return Report(files)


def _read(name: str, base_dir: Path) -> list[Row]:
    return read_published(find_published(name, base_dir, WHERE), name, FILE)


def _usable(row: Row) -> Values:
    row.check()
    return dict(row.values)


def _row(row: Row, form: LongMemEvalForm) -> Row:
    if row.problem is not None:
        return row
    try:
        return Row(_values(read(LongMemEvalRow, row.values, ""), form), row.source)
    except DataError as error:
        return Row({}, row.source, str(error))


def _values(row: LongMemEvalRow, form: LongMemEvalForm) -> Values:
    """A row of the memory environments."""
    abstains = row.question_id.endswith(ABSTENTION)
    conversation: list[Values] = []
    evidence: list[str] = []
    for session in _sessions(row):
        for number, turn in enumerate(session.turns, start=1):
            if not turn.content.strip():
                continue
            id = f"{session.id}:{number}"
            conversation.append(
                {
                    "speaker": turn.role,
                    "text": turn.content,
                    "timestamp": session.date,
                    "dia_id": id,
                    "session": session.id,
                }
            )
            by_session = form.evidence == "sessions"
            is_evidence = session.id in row.answer_session_ids if by_session else turn.has_answer is True
            evidence += [id] if is_evidence and not abstains else []
    return {
        "id": row.question_id,
        "kind": "longmemeval",
        "category": row.question_type,
        "question_type": row.question_type,
        "abstention": abstains,
        "question": f"Asked on {row.question_date}: {row.question}",
        "answers": [row.answer],
        "evidence": evidence,
        "answer_session_ids": row.answer_session_ids,
        "conversation": conversation,
    }


def _sessions(row: LongMemEvalRow) -> list[_Session]:
    """The sessions by date; a repeated id gets a number, so that each turn has an id of its own."""
    sessions: dict[str, _Session] = {}
    columns = zip(row.haystack_session_ids, row.haystack_dates, row.haystack_sessions, strict=True)
    for id, date, turns in columns:
        number = 2
        name = id
        while name in sessions:
            name, number = f"{id}#{number}", number + 1
        sessions[name] = _Session(name, date, turns)
    return sorted(sessions.values(), key=lambda session: _day_and_time(session.date))


def _day_and_time(date: str) -> tuple[str, ...]:
    """The parts of a date that sort by time; empty if it is not a date."""
    match = DATE.match(date)
    return () if match is None else match.groups()

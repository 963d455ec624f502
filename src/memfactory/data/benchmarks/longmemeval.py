"""The dataset `longmemeval`, and `memfactory data longmemeval`: questions about a user's chats (arXiv 2410.10813).

The three files (oracle, s, m) have one form. A row is a question with its own history: the sessions by date (the
oracle file has them in no order), each turn named "<session>:<number>". Times stay as the file writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from memfactory.data.base import Dataset, DatasetOptions, GeneratedRows, Row
from memfactory.data.rows import described, find_file, read_rows, text_or_number
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
DATE = re.compile(r"(\d{4}/\d{2}/\d{2}) \(\w+\) (\d{2}:\d{2})")


class LongMemEvalForm(Options):
    """Which rows of LongMemEval, and what counts as evidence."""

    question_types: list[QuestionType] | None = Field(None, min_length=1)
    """Only questions of these types; null: all six."""
    evidence: Literal["turns", "sessions"] = "turns"
    """The turns marked as holding the answer, or every turn of the sessions that do (for metrics by session)."""


class LongMemEvalOptions(DatasetOptions, LongMemEvalForm):
    """Options of `longmemeval`."""

    path: str
    """LongMemEval's file; relative to the working directory, else to the config's folder."""


@DATASETS.register("longmemeval")
class LongMemEvalDataset(Dataset[LongMemEvalOptions]):
    """LongMemEval: questions about a user's chats with an assistant, each with a history of its own."""

    @property
    def source(self) -> str:
        return self.options.path

    def rows(self) -> Sequence[Row]:
        """The questions' rows, made when they are looked at: a history is long."""
        return rows_of(_read(self.options.path, self.base_dir), self.options, self.options.limit)


@dataclass(frozen=True)
class _Session:
    id: str
    date: str
    turns: Sequence[object]


def rows_of(given: Sequence[Row], form: LongMemEvalForm, limit: int | None = None) -> Sequence[Row]:
    """The rows of the wanted types. One that does not fit is a row with a problem."""
    wanted = form.question_types
    kept = [row for row in given if row.problem or wanted is None or row.values.get("question_type") in wanted][:limit]
    return GeneratedRows(lambda index: _row(kept[index], form), len(kept))


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


def _read(given: str, base_dir: Path) -> list[Row]:
    try:
        path = find_file(given, base_dir)
    except DataError as error:
        raise DataError(f"{error}\n{WHERE}") from None
    rows = read_rows(path, given)
    if not rows:
        raise DataError(f"{given} has no questions. {WHERE}")
    return rows


def _usable(row: Row) -> Values:
    if row.problem is not None:
        raise DataError(f"{row.source}: {row.problem}")
    return dict(row.values)


def _row(given: Row, form: LongMemEvalForm) -> Row:
    if given.problem is not None:
        return given
    try:
        return Row(_values(given.values, form), given.source)
    except DataError as error:
        return Row({}, given.source, str(error))


def _values(given: Mapping[str, object], form: LongMemEvalForm) -> Values:
    """A row of the memory environments. Raises DataError that names the field and what was expected."""
    name, kind = _text(given, "question_id"), _text(given, "question_type")
    answer = given.get("answer")
    if text_or_number(answer) is None:
        raise DataError(f"field 'answer' should be a text or a number, got {described(answer)}")
    abstains = name.endswith(ABSTENTION)
    answering = _texts(given, "answer_session_ids")
    conversation: list[Values] = []
    evidence: list[str] = []
    for session in _sessions(given):
        for number, value in enumerate(session.turns, start=1):
            turn = _turn(value, session, number)
            if form.evidence == "sessions":
                holds = session.id in answering
            else:
                holds = isinstance(value, Mapping) and value.get("has_answer") is True
            if turn is not None:
                conversation.append(turn)
                evidence += [str(turn["dia_id"])] if holds and not abstains else []
    return {
        "id": name,
        "kind": "longmemeval",
        "category": kind,
        "question_type": kind,
        "abstention": abstains,
        "question": f"Asked on {_text(given, 'question_date')}: {_text(given, 'question')}",
        "answers": [str(answer)],
        "evidence": evidence,
        "answer_session_ids": answering,
        "conversation": conversation,
    }


def _sessions(given: Mapping[str, object]) -> list[_Session]:
    """The sessions by date; an id that occurs again gets a number, so that turns have ids of their own."""
    ids, dates, told = (
        _texts(given, "haystack_session_ids"),
        _texts(given, "haystack_dates"),
        given.get("haystack_sessions"),
    )
    if not isinstance(told, list) or not len(ids) == len(dates) == len(told):
        raise DataError(
            "haystack_sessions, haystack_session_ids and haystack_dates should be lists of one length, got "
            f"{described(told)}, {len(ids)} and {len(dates)}"
        )
    wrong = next((date for date in dates if not DATE.match(date)), None)
    if wrong is not None:
        raise DataError(f"haystack_dates should be such as '2023/05/30 (Tue) 08:08', got {wrong!r}")
    sessions: dict[str, _Session] = {}
    for id, date, turns in zip(ids, dates, told, strict=True):
        if not isinstance(turns, list):
            raise DataError(f"haystack_sessions should hold lists of turns, got {described(turns)}")
        number = 2
        name = id
        while name in sessions:
            name, number = f"{id}#{number}", number + 1
        sessions[name] = _Session(name, date, turns)
    return sorted(sessions.values(), key=lambda session: _when(session.date))


def _when(date: str) -> tuple[str, ...]:
    match = DATE.match(date)
    assert match is not None
    return match.groups()


def _turn(value: object, session: _Session, number: int) -> Values | None:
    """A turn as the environments read it; None where nothing is said."""
    role, content = (value.get("role"), value.get("content")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(f"session {session.id} turn {number} should have a role and a content, got {described(value)}")
    if not content.strip():
        return None
    return {
        "speaker": role,
        "text": content,
        "timestamp": session.date,
        "dia_id": f"{session.id}:{number}",
        "session": session.id,
    }


def _text(given: Mapping[str, object], field: str) -> str:
    value = given.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field {field!r} should be a text, got {described(value)}")
    return value


def _texts(given: Mapping[str, object], field: str) -> list[str]:
    value = given.get(field)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"field {field!r} should be a list of texts, got {described(value)}")
    return list(value)

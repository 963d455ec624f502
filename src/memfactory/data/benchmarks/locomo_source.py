"""LoCoMo's own file: long conversations by session, and questions about them with their evidence (arXiv 2402.17753).

Mistakes of the file are corrected or left out here, each with a note of its conversation. Times stay as the file writes
them ("1:56 pm on 8 May, 2023").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field

from memfactory.data.base import Row
from memfactory.data.fields import AnyText, RowModel, Text, TextOrNumber, expected, is_number, read, read_list
from memfactory.data.published import Published, find_published, read_published
from memfactory.errors import DataError

ADVERSARIAL = 5
CATEGORIES: Mapping[int, str] = {
    1: "multi-hop (tables: Single-Hop)",
    2: "temporal (tables: Temporal)",
    3: "open-domain (tables: Multi-Hop)",
    4: "single-hop (tables: Open Domain)",
    ADVERSARIAL: "adversarial",
}
"""LoCoMo's own names; in brackets the column names of mem0's and Memory-R1's tables."""
UNANSWERABLE = "Not mentioned in the conversation"
"""The gold answer of adversarial questions."""
WHERE = "LoCoMo is data/locomo10.json of https://github.com/snap-research/locomo (CC BY-NC 4.0)"
FILE = Published(
    "LoCoMo",
    "a list of conversations with `sample_id`, `conversation` and `qa`",
    WHERE,
    "conversations",
    frozenset({"sample_id", "conversation", "qa"}),
)

T = TypeVar("T")
SESSION = re.compile(r"session_(\d+)")
SESSION_DATE = re.compile(r"session_(\d+)_date_time")
TURN_ID = re.compile(r"D:?(\d+):(\d+)")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, with an `id` such as "D3:7"; `caption` describes the image it shares, if any."""

    id: str
    speaker: str
    text: str
    time: str | None
    session: int
    caption: str | None

    def captioned(self, captions: bool) -> str:
        """The text, followed by the caption of the shared image if `captions`."""
        return f"{self.text} [shares an image: {self.caption}]" if captions and self.caption else self.text


@dataclass(frozen=True)
class Question:
    """A question. `index` is its place in its conversation's list; `evidence` are ids of turns that exist."""

    index: int
    text: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...]
    category: int


@dataclass(frozen=True)
class Conversation:
    """A conversation with its questions, and a note for each correction and omission."""

    id: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    notes: tuple[str, ...]


def _category(value: object) -> int:
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or number not in CATEGORIES:
        raise expected("1, 2, 3, 4 or 5")
    return number


class _ConversationRow(RowModel):
    sample_id: Text
    conversation: dict[str, object] = Field(description="an object")
    qa: list[object] = Field(description="a list of questions")


class _TurnRow(RowModel):
    dia_id: Text
    speaker: Text
    text: AnyText
    blip_caption: object = None


class _QuestionRow(RowModel):
    question: Text
    category: Annotated[int, BeforeValidator(_category)]
    evidence: object = None
    answer: object = None


class _AnsweredRow(RowModel):
    answer: TextOrNumber = Field(description="a text or a number")


def read_conversations(name: str, base_dir: Path = Path(), problems: list[str] | None = None) -> list[Conversation]:
    """The conversations of the file `name`, looked up in the working directory, then in `base_dir`.

    Raises DataError that says where to get the file, or which conversation and field do not fit. With `problems`, a
    conversation or question that does not fit is left out, and its error message is added to the list.
    """
    hint = "; save it there, or give its place as `path`"
    rows = read_published(find_published(name, base_dir, WHERE + hint), name, FILE)
    read_or_none = [_or_none(partial(_conversation, row, problems), problems) for row in rows]
    conversations = [conversation for conversation in read_or_none if conversation is not None]
    ids = [conversation.id for conversation in conversations]
    repeated = next((id for id in ids if ids.count(id) > 1), None)
    if repeated is not None:
        raise DataError(f"{name} has two conversations with the sample_id {repeated!r}")
    return conversations


def _or_none(read: Callable[[], T], problems: list[str] | None) -> T | None:
    """The result of `read`; None if it raises DataError and `problems` collects the messages."""
    try:
        return read()
    except DataError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return None


def _conversation(row: Row, problems: list[str] | None) -> Conversation:
    row.check()
    id = row.values.get("sample_id")
    where = f"{row.source} ({id})" if isinstance(id, str) and id else row.source
    try:
        values = read(_ConversationRow, row.values, where)
    except DataError as error:
        raise error if where != row.source else DataError(f"{error}. {WHERE}") from None
    notes: list[str] = []
    turns = _turns(values, where, notes)
    ids = {turn.id for turn in turns}
    questions: list[Question] = []
    for index, value in enumerate(values.qa):
        ask = _Reading(index, ids, f"{values.sample_id}/{index}", f"{where}: question {index}", notes)
        question = _or_none(partial(_question, value, ask), problems)
        questions += [] if question is None else [question]
    return Conversation(values.sample_id, turns, tuple(questions), tuple(notes))


def _turns(row: _ConversationRow, where: str, notes: list[str]) -> tuple[Turn, ...]:
    fields = row.conversation
    sessions = {int(match[1]): fields[key] for key in fields if (match := SESSION.fullmatch(key)) and fields[key]}
    dates = {int(match[1]) for key in fields if (match := SESSION_DATE.fullmatch(key))}
    if dates - set(sessions):
        notes.append(f"{row.sample_id}: {len(dates - set(sessions))} session dates without a session are left out")
    turns: dict[str, Turn] = {}
    for number in sorted(sessions):
        date = fields.get(f"session_{number}_date_time")
        time = date if isinstance(date, str) else None
        for value in read_list(_TurnRow, sessions[number], where, at=f"session_{number}"):
            if value.dia_id in turns:
                raise DataError(f"{where}: two turns have the dia_id {value.dia_id!r}")
            caption = value.blip_caption.strip() if isinstance(value.blip_caption, str) else ""
            turns[value.dia_id] = Turn(value.dia_id, value.speaker, value.text, time, number, caption or None)
    if not turns:
        raise DataError(f"{where}: the conversation has no sessions; expected session_1, session_2, ...")
    return tuple(turns.values())


@dataclass(frozen=True)
class _Reading:
    """A question's place in its file, the ids of its conversation's turns, and the conversation's notes."""

    index: int
    turns: set[str]
    name: str
    where: str
    notes: list[str]


def _question(value: object, reading: _Reading) -> Question:
    row = read(_QuestionRow, value, reading.where)
    evidence = _evidence(row.evidence, reading)
    return Question(reading.index, row.question, _answers(value, row, reading.where), evidence, row.category)


def _answers(value: object, row: _QuestionRow, where: str) -> tuple[str, ...]:
    """The gold answer as text: some are numbers, and nearly all adversarial questions have none."""
    if row.category != ADVERSARIAL:
        return (read(_AnsweredRow, value, where).answer.strip(),)
    gold = str(row.answer).strip() if isinstance(row.answer, str) or is_number(row.answer) else ""
    return (UNANSWERABLE, gold) if gold else (UNANSWERABLE,)


def _evidence(value: object, reading: _Reading) -> tuple[str, ...]:
    """Ids of existing turns, each once. "D8:6; D9:17" holds two ids; "D:11:26" and "D30:05" are misspelt ids."""
    entries = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if not entries:
        reading.notes.append(f"{reading.name}: no evidence")
    evidence: list[str] = []
    for entry in entries:
        text = entry if isinstance(entry, str) else ""
        ids = [text]
        if text not in reading.turns:
            ids = [f"D{int(match[1])}:{int(match[2])}" for match in TURN_ID.finditer(text)]
        existing = [id for id in ids if id in reading.turns]
        if not existing:
            reason = "names no turn" if ids else "is not the id of a turn"
            reading.notes.append(f"{reading.name}: evidence {entry!r} {reason} and is left out")
        elif existing != [text]:
            reading.notes.append(f"{reading.name}: evidence {entry!r} is read as {', '.join(existing)}")
        evidence += existing
    return tuple(dict.fromkeys(evidence))

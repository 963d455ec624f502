"""LoCoMo's own file: long conversations by session, and questions about them with their evidence (arXiv 2402.17753).

What the file has wrong is mended here or left out, and every such thing is a note of its conversation. Times stay as
the file writes them ("1:56 pm on 8 May, 2023").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from memfactory.data.base import Row
from memfactory.data.rows import described, find_file, read_rows, text_or_number
from memfactory.errors import DataError

ADVERSARIAL = 5
CATEGORIES: Mapping[int, str] = {
    1: "multi-hop (tables: Single-Hop)",
    2: "temporal (tables: Temporal)",
    3: "open-domain (tables: Multi-Hop)",
    4: "single-hop (tables: Open Domain)",
    ADVERSARIAL: "adversarial",
}
"""LoCoMo's own names, and in brackets the columns of the tables of mem0 and Memory-R1, which name them otherwise."""
UNANSWERABLE = "Not mentioned in the conversation"
"""The gold answer of adversarial questions: that the conversation does not say."""
WHERE = "LoCoMo is data/locomo10.json of https://github.com/snap-research/locomo (CC BY-NC 4.0)"

T = TypeVar("T")
SESSION = re.compile(r"session_(\d+)")
SESSION_DATE = re.compile(r"session_(\d+)_date_time")
TURN_ID = re.compile(r"D:?(\d+):(\d+)")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. `id` is such as "D3:7"; `caption` describes the image that was shared, if one was."""

    id: str
    speaker: str
    text: str
    time: str | None
    session: int
    caption: str | None

    def said(self, captions: bool) -> str:
        """The text, with what the shared image shows where `captions` are wanted."""
        return f"{self.text} [shares an image: {self.caption}]" if captions and self.caption else self.text


@dataclass(frozen=True)
class Question:
    """A question. `index` is its place among its conversation's; `evidence` are ids of turns that are there."""

    index: int
    text: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...]
    category: int


@dataclass(frozen=True)
class Conversation:
    """A conversation with its questions, and a note for all that was mended or left out."""

    id: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    notes: tuple[str, ...]


def read_conversations(given: str, base_dir: Path = Path(), problems: list[str] | None = None) -> list[Conversation]:
    """The conversations of the file that `given` names, from the working directory first, then from `base_dir`.

    Raises DataError that says where to get the file, or which conversation and field do not fit. With `problems` a
    conversation or question that does not fit is left out, and what is wrong with it is added there.
    """
    try:
        path = find_file(given, base_dir)
    except DataError as error:
        raise DataError(f"{error}\n{WHERE}; save it there, or say where it is by `path`") from None
    rows = read_rows(path, given)
    if not rows:
        raise DataError(f"{given} has no conversations. {WHERE}")
    found = [one for row in rows if (one := _tried(partial(_conversation, row, problems), problems)) is not None]
    ids = [conversation.id for conversation in found]
    twice = next((id for id in ids if ids.count(id) > 1), None)
    if twice is not None:
        raise DataError(f"{given} has two conversations with the sample_id {twice!r}")
    return found


def _tried(read: Callable[[], T], problems: list[str] | None) -> T | None:
    """What `read` gives; None where it does not fit and `problems` are collected."""
    try:
        return read()
    except DataError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return None


def _conversation(row: Row, problems: list[str] | None) -> Conversation:
    if row.problem is not None:
        raise DataError(f"{row.source}: {row.problem}")
    name = row.values.get("sample_id")
    if not isinstance(name, str) or not name:
        raise DataError(f"{row.source}: field 'sample_id' should be a text, got {described(name)}. {WHERE}")
    where = f"{row.source} ({name})"
    told, asked = row.values.get("conversation"), row.values.get("qa")
    if not isinstance(told, Mapping):
        raise DataError(f"{where}: field 'conversation' should be an object, got {described(told)}")
    if not isinstance(asked, list):
        raise DataError(f"{where}: field 'qa' should be a list of questions, got {described(asked)}")
    notes: list[str] = []
    turns = _turns(told, where, name, notes)
    ids = {turn.id for turn in turns}
    questions: list[Question] = []
    for index, value in enumerate(asked):
        question = _tried(partial(_question, value, index, ids, f"{name}/{index}", where, notes), problems)
        questions += [] if question is None else [question]
    return Conversation(name, turns, tuple(questions), tuple(notes))


def _turns(told: Mapping[str, object], where: str, name: str, notes: list[str]) -> tuple[Turn, ...]:
    sessions = {int(match[1]): told[key] for key in told if (match := SESSION.fullmatch(key)) and told[key]}
    dates = {int(match[1]) for key in told if (match := SESSION_DATE.fullmatch(key))}
    if dates - set(sessions):
        notes.append(f"{name}: {len(dates - set(sessions))} session dates without a session are left out")
    turns: dict[str, Turn] = {}
    for number in sorted(sessions):
        session, time = sessions[number], told.get(f"session_{number}_date_time")
        if not isinstance(session, list):
            raise DataError(f"{where}: session_{number} should be a list of turns, got {described(session)}")
        for place, value in enumerate(session, start=1):
            turn = _turn(
                value, number, time if isinstance(time, str) else None, f"{where}: session_{number} turn {place}"
            )
            if turn.id in turns:
                raise DataError(f"{where}: two turns have the dia_id {turn.id!r}")
            turns[turn.id] = turn
    if not turns:
        raise DataError(f"{where}: the conversation has no sessions; expected session_1, session_2, ...")
    return tuple(turns.values())


def _turn(value: object, session: int, time: str | None, where: str) -> Turn:
    fields = value if isinstance(value, Mapping) else {}
    texts = {}
    for field in ("dia_id", "speaker", "text"):
        given = fields.get(field)
        if not isinstance(given, str) or not (given.strip() or field == "text"):
            raise DataError(f"{where}: field {field!r} should be a text, got {described(given)}")
        texts[field] = given
    caption = fields.get("blip_caption")
    seen = caption.strip() if isinstance(caption, str) else ""
    return Turn(texts["dia_id"], texts["speaker"], texts["text"], time, session, seen or None)


def _question(value: object, index: int, ids: set[str], name: str, where: str, notes: list[str]) -> Question:
    place = f"{where}: question {index}"
    fields = value if isinstance(value, Mapping) else {}
    text, category = fields.get("question"), fields.get("category")
    if isinstance(category, str) and category.strip().isdecimal():
        category = int(category)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: field 'question' should be a text, got {described(text)}")
    if not isinstance(category, int) or isinstance(category, bool) or category not in CATEGORIES:
        raise DataError(f"{place}: field 'category' should be 1, 2, 3, 4 or 5, got {described(category)}")
    evidence = _evidence(fields.get("evidence"), ids, name, notes)
    return Question(index, text, _answers(fields.get("answer"), category, place), evidence, category)


def _answers(value: object, category: int, place: str) -> tuple[str, ...]:
    """The gold answer as text: some are numbers, and nearly all adversarial questions have none."""
    gold = (text_or_number(value) or "").strip()
    if category == ADVERSARIAL:
        return (UNANSWERABLE, gold) if gold else (UNANSWERABLE,)
    if not gold:
        raise DataError(f"{place}: field 'answer' should be a text or a number, got {described(value)}")
    return (gold,)


def _evidence(value: object, ids: set[str], name: str, notes: list[str]) -> tuple[str, ...]:
    """Ids of turns that are there, each once. "D8:6; D9:17" holds two, "D:11:26" and "D30:05" are written otherwise."""
    given = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if not given:
        notes.append(f"{name}: no evidence")
    found: list[str] = []
    for entry in given:
        text = entry if isinstance(entry, str) else ""
        named = [text] if text in ids else [f"D{int(match[1])}:{int(match[2])}" for match in TURN_ID.finditer(text)]
        there = [id for id in named if id in ids]
        if not there:
            reason = "names no turn" if named else "is no id of a turn"
            notes.append(f"{name}: evidence {entry!r} {reason} and is left out")
        elif there != [text]:
            notes.append(f"{name}: evidence {entry!r} is read as {', '.join(there)}")
        found += there
    return tuple(dict.fromkeys(found))

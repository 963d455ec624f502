"""Rows about a question to a memory as tasks: a memory bank, a conversation that is read into it, the question.

| value | fields, the first that is not null | form |
|---|---|---|
| the bank before | `memory`, `M` | list of items, each with `id` and `value` (the rest: `envs/memory_item.py`) |
| what is read into it | `conversation`, `fact`, `f` | list of utterances |
| question | `query`, `q`, `question` | text |
| gold answers | `answers`, `answer`, `a` | text, number, or a list of these |
| what an updater is shown | `context_memory` | list of items, each of them in the memory |
| gold evidence | `evidence` | list of the ids of utterances; what names none of the row's is left out |
| id | `id`, `index` | text or number |

An utterance has `role` or `speaker` and `content` or `text`; it may have `timestamp` or `time`, `dia_id` or `id`, and
`session`. Of the rest are kept: `kind`, `category`, `category_name`, `question_type`, `conversation_id` or `sample_id`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from memfactory.data.base import Row
from memfactory.data.rows import described, is_number
from memfactory.envs.memory_item import item_from
from memfactory.envs.row_fields import answers_of, find_field, id_of, text_of, value_at
from memfactory.errors import DataError
from memfactory.types import MemoryItem, Scalar, Task, Utterance, frozen

T = TypeVar("T")

MEMORIES = ("memory", "M")
CONVERSATIONS = ("conversation", "fact", "f")
QUESTIONS = ("query", "q", "question")
ANSWERS = ("answers", "answer", "a")
IDS = ("id", "index")
LOST_EVIDENCE = "lost_evidence"
"""Where a task's `meta` counts the evidence that names no turn of its conversation and no source of its memory."""
KEPT = {
    "kind": ("kind",),
    "category": ("category",),
    "category_name": ("category_name",),
    "question_type": ("question_type",),
    "conversation": ("conversation_id", "sample_id"),
}


class MemoryRowReader:
    """Reads the rows of one dataset. Conversations and memories that rows hold alike are one value in their tasks.

    A list that many rows hold (a conversation with a hundred questions) is read once. Lists are told apart by identity,
    so the reader keeps them, and should live no longer than one reading.
    """

    def __init__(self, *, needs_answers: bool = True) -> None:
        self.needs_answers = needs_answers
        self._read: dict[tuple[str, int], tuple[object, tuple[Any, ...]]] = {}
        self._equal: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def task(self, row: Row) -> Task:
        """The task of `row`. Raises DataError naming the row, the field, what was given and what was expected."""
        question = text_of(row, *find_field(row, None, QUESTIONS, "question"))
        memory = self._once(row, MEMORIES, _items)
        conversation = self._once(row, CONVERSATIONS, _utterances)
        there = {turn.id for turn in conversation}.union(*(item.sources for item in memory))
        named = _evidence(row)
        evidence = tuple(id for id in named if id in there) if conversation or memory else named
        return Task(
            id=id_of(row, IDS, question),
            question=question,
            answers=self._answers(row),
            memory=memory,
            related=_related(row, {item.id for item in memory}),
            conversation=conversation,
            evidence=evidence,
            meta=_meta(row, len(named) - len(evidence)),
        )

    def _once(
        self, row: Row, fields: tuple[str, ...], read: Callable[[Row, str, list[object]], tuple[T, ...]]
    ) -> tuple[T, ...]:
        """What `read` makes of the list under the first of `fields` that is not null; nothing where all are."""
        field = _first(row, fields)
        if field is None:
            return ()
        given = row.values[field]
        place = fields[0], id(given)
        if place not in self._read:
            found = read(row, field, _list(row, field, given))
            self._read[place] = given, self._equal.setdefault(found, found)
        return self._read[place][1]

    def _answers(self, row: Row) -> tuple[str, ...]:
        if not self.needs_answers and _first(row, ANSWERS) is None:
            return ()
        return answers_of(row, *find_field(row, None, ANSWERS, "gold answers"))


def _first(row: Row, fields: tuple[str, ...]) -> str | None:
    """The first of `fields` that is not null."""
    return next((field for field in fields if row.values.get(field) is not None), None)


def _list(row: Row, field: str, value: object) -> list[object]:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{row.source}: field {field!r} should be a list, got {described(value)}")
    return list(value)


def _object(row: Row, field: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise DataError(f"{row.source}: field {field!r} should be an object with fields, got {described(value)}")
    return value


def _items(row: Row, field: str, given: list[object]) -> tuple[MemoryItem, ...]:
    places = [f"{field}[{number}]" for number in range(len(given))]
    items = tuple(
        item_from(_object(row, place, value), f"{row.source}: {place}")
        for place, value in zip(places, given, strict=True)
    )
    twice = [id for id, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise DataError(f"{row.source}: field {field!r} should hold each id once, but has {twice[0]!r} more than once")
    return items


def _related(row: Row, known: set[str]) -> tuple[str, ...] | None:
    """The ids under `context_memory`; None where the row leaves it to the updater."""
    field = "context_memory"
    given = row.values.get(field)
    if given is None:
        return None
    found = []
    for number, value in enumerate(_list(row, field, given)):
        place = f"{field}[{number}]"
        given_id = _object(row, place, value).get("id")
        id = text_of(row, f"{place}.id", str(given_id) if is_number(given_id) else given_id)
        if id not in known:
            raise DataError(f"{row.source}: field {place!r} should be an item of the memory, which has no id {id!r}")
        found.append(id)
    return tuple(dict.fromkeys(found))


def _utterances(row: Row, field: str, given: list[object]) -> tuple[Utterance, ...]:
    return tuple(_utterance(row, f"{field}[{number}]", value) for number, value in enumerate(given))


def _utterance(row: Row, place: str, value: object) -> Utterance:
    turn = _object(row, place, value)

    def written(*names: str) -> str:
        """The first of these fields that is not null, a number as it is written; nothing where there is none."""
        name = next((name for name in names if turn.get(name) is not None), None)
        given = "" if name is None else turn[name]
        return text_of(row, f"{place}.{name}", str(given) if is_number(given) else given, blank=True)

    for names in (("role", "speaker"), ("content", "text")):
        if all(turn.get(name) is None for name in names):
            there = ", ".join(map(str, turn)) or "no fields"
            raise DataError(
                f"{row.source}: field {place!r} should have {' or '.join(map(repr, names))}; it has {there}"
            )
    return Utterance(
        speaker=written("role", "speaker"),
        text=written("content", "text"),
        id=written("dia_id", "id"),
        time=written("timestamp", "time") or None,
        session=written("session"),
    )


def _evidence(row: Row) -> tuple[str, ...]:
    given = row.values.get("evidence")
    if given is None:
        return ()
    places = enumerate(_list(row, "evidence", given))
    return tuple(dict.fromkeys(text_of(row, f"evidence[{number}]", value) for number, value in places))


def _meta(row: Row, lost: int) -> Mapping[str, Scalar]:
    meta: dict[str, Scalar] = {LOST_EVIDENCE: lost} if lost else {}
    for name, fields in KEPT.items():
        value = next((found for field in fields if (found := value_at(row.values, field)) is not None), None)
        if isinstance(value, (str, bool)) or is_number(value):
            meta[name] = value
    return frozen(meta)

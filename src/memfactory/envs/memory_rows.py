"""Rows of memory-bank questions as tasks: a memory bank, a conversation to read into it, the question.

| value | fields, the first that is not null | form |
|---|---|---|
| the initial bank | `memory`, `M` | list of items, each with `id` and `value` (the rest: `envs/memory_item.py`) |
| the conversation | `conversation`, `fact`, `f` | list of utterances |
| question | `query`, `q`, `question` | text |
| gold answers | `answers`, `answer`, `a` | text, number, or a list of these |
| the items that an updater is shown | `context_memory` | list of items of the memory |
| gold evidence | `evidence` | list of ids of utterances; ids that the row does not have are left out |
| id | `id`, `index` | text or number |

An utterance has `role` or `speaker` and `content` or `text`; it may have `timestamp` or `time`, `dia_id` or `id`, and
`session`. A task's `meta` also has the row's `kind`, `category`, `category_name`, `question_type`, and
`conversation_id` or `sample_id`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import AliasChoices, Field

from memfactory.data.base import Row
from memfactory.data.fields import (
    AliasedModel,
    AnyTextOrNumber,
    Text,
    TextOrNumber,
    first_name,
    is_number,
    missing,
    read,
    read_list,
    value_at,
)
from memfactory.envs.memory_item import ItemRow
from memfactory.envs.row_fields import GoldAnswers, id_of
from memfactory.errors import DataError
from memfactory.types import MemoryItem, Scalar, Task, Utterance, frozen

T = TypeVar("T")

MEMORIES = ("memory", "M")
CONVERSATIONS = ("conversation", "fact", "f")
ANSWERS = ("answers", "answer", "a")
IDS = ("id", "index")
UNKNOWN_EVIDENCE = "lost_evidence"
"""The key of a task's `meta` that counts evidence ids that are neither a turn of its conversation nor a source of its
memory."""
META = {
    "kind": ("kind",),
    "category": ("category",),
    "category_name": ("category_name",),
    "question_type": ("question_type",),
    "conversation": ("conversation_id", "sample_id"),
}


class _Reference(AliasedModel):
    id: TextOrNumber


class _UtteranceRow(AliasedModel):
    speaker: AnyTextOrNumber = Field(validation_alias=AliasChoices("role", "speaker"))
    text: AnyTextOrNumber = Field(validation_alias=AliasChoices("content", "text"))
    id: AnyTextOrNumber = Field("", validation_alias=AliasChoices("dia_id", "id"))
    time: AnyTextOrNumber = Field("", validation_alias=AliasChoices("timestamp", "time"))
    session: AnyTextOrNumber = ""


class _MemoryRow(AliasedModel):
    """A row without its memory and conversation, which rows may share."""

    question: Text = Field(validation_alias=AliasChoices("query", "q", "question"))
    answers: GoldAnswers = Field((), validation_alias=AliasChoices(*ANSWERS))
    context_memory: list[_Reference] | None = None
    evidence: tuple[Text, ...] = ()


class MemoryRowReader:
    """Reads the rows of one dataset. Equal conversations and memories of several rows are one value in their tasks.

    A list that many rows share (a conversation with a hundred questions) is read once. Lists are compared by identity,
    so the reader keeps them, and should live no longer than one reading.
    """

    def __init__(self, *, needs_answers: bool = True) -> None:
        self.needs_answers = needs_answers
        self._by_identity: dict[tuple[str, int], tuple[object, tuple[Any, ...]]] = {}
        self._equal: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def task(self, row: Row) -> Task:
        """The task of `row`. Raises DataError naming the row, the field, its value and the expected form."""
        values = read(_MemoryRow, row.values, row.source)
        if self.needs_answers and not values.answers:
            raise missing(row.source, "gold answers", ANSWERS, row.values)
        memory = self._once(row, MEMORIES, _items)
        conversation = self._once(row, CONVERSATIONS, _utterances)
        named = tuple(dict.fromkeys(values.evidence))
        evidence = named
        if conversation or memory:
            known = {turn.id for turn in conversation}.union(*(item.sources for item in memory))
            evidence = tuple(id for id in named if id in known)
        return Task(
            id=id_of(row, IDS, values.question),
            question=values.question,
            answers=values.answers,
            memory=memory,
            related=_related(row, values.context_memory, {item.id for item in memory}),
            conversation=conversation,
            evidence=evidence,
            meta=_meta(row, len(named) - len(evidence)),
        )

    def _once(
        self, row: Row, names: tuple[str, ...], read_field: Callable[[Row, str, object], tuple[T, ...]]
    ) -> tuple[T, ...]:
        """The list under the first of `names` that is not null, by `read_field`; empty if all are null."""
        name = first_name(row.values, names)
        if name is None:
            return ()
        value = row.values[name]
        key = names[0], id(value)
        if key not in self._by_identity:
            values = read_field(row, name, value)
            self._by_identity[key] = value, self._equal.setdefault(values, values)
        return self._by_identity[key][1]


def _items(row: Row, name: str, value: object) -> tuple[MemoryItem, ...]:
    items = tuple(item.item() for item in read_list(ItemRow, value, row.source, at=name))
    repeated = [id for id, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise DataError(
            f"{row.source}: field {name!r} should hold each id once, but has {repeated[0]!r} more than once"
        )
    return items


def _utterances(row: Row, name: str, value: object) -> tuple[Utterance, ...]:
    turns = read_list(_UtteranceRow, value, row.source, at=name)
    return tuple(Utterance(turn.speaker, turn.text, turn.id, turn.time or None, turn.session) for turn in turns)


def _related(row: Row, references: list[_Reference] | None, known: set[str]) -> tuple[str, ...] | None:
    """The ids under `context_memory`; None if the row leaves them to the updater."""
    if references is None:
        return None
    for number, reference in enumerate(references):
        if reference.id not in known:
            raise DataError(
                f"{row.source}: field 'context_memory[{number}]' should be an item of the memory, which has no id "
                f"{reference.id!r}"
            )
    return tuple(dict.fromkeys(reference.id for reference in references))


def _meta(row: Row, unknown: int) -> Mapping[str, Scalar]:
    meta: dict[str, Scalar] = {UNKNOWN_EVIDENCE: unknown} if unknown else {}
    for name, names in META.items():
        field = first_name(row.values, names)
        value = None if field is None else value_at(row.values, field)
        if isinstance(value, (str, bool)) or is_number(value):
            meta[name] = value
    return frozen(meta)

"""Reads a reply: the JSON object in it, wherever it stands, and the entries of the object. Pure; never raises.

The `form` of a reply says how well it kept to its format: the fraction of its entries that are usable as they stand. A
repaired entry counts half, and words around the object count as one entry more. A reply without a usable entry has 0:
an empty list never earns a reward of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from memfactory.text import after_thinking, writable
from memfactory.types import Candidate

E = TypeVar("E")
KINDS = ("LongTermMemory", "UserMemory")
MOST_UNREADABLE = 1000
BARE = {("", ""), ("```", "```"), ("```json", "```")}


@dataclass(frozen=True)
class JsonObject:
    """A JSON object of a reply. `bare`: nothing but a code fence stands around it."""

    values: dict[str, object]
    bare: bool


@dataclass(frozen=True)
class Extraction:
    """The candidates of a reply."""

    candidates: tuple[Candidate, ...]
    form: float


@dataclass(frozen=True)
class Topic:
    """The summary of one topic, and the places (from 0) of the turns that it refers to."""

    summary: str
    places: tuple[int, ...]


@dataclass(frozen=True)
class Topics:
    """The topics that a reply sums up."""

    topics: tuple[Topic, ...]
    form: float


def find_object(text: str, key: str) -> JsonObject | None:
    """The last complete JSON object after thinking that has `key` and lies in no other object; None without one.

    Unreadable objects (cut off, nested too deep, a number of thousands of digits) are skipped. The search ends after
    MOST_UNREADABLE braces without a readable object, since each may cost a scan of all the text behind it.
    """
    reply = after_thinking(text)
    last: JsonObject | None = None
    start = -1 if reply is None else reply.find("{")
    unreadable = 0
    while reply is not None and start >= 0 and unreadable < MOST_UNREADABLE:
        end = start + 1
        read = _object_at(reply, start)
        if read is None:
            unreadable += 1
        else:
            values, end = read
            if key in values:
                last = JsonObject(values, (reply[:start].strip(), reply[end:].strip()) in BARE)
        start = reply.find("{", end)
    return last


def _object_at(text: str, start: int) -> tuple[dict[str, object], int] | None:
    try:
        values, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return values, end


def one_line(value: object) -> str | None:
    """A JSON string on one line; None for anything else and for blanks. Halves of surrogate pairs are replaced."""
    if not isinstance(value, str):
        return None
    return " ".join(writable(value).split()) or None


def integer(value: object) -> int | None:
    """An integer, also one written as a string of digits; None for anything else."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[0-9]{1,9}", value.strip()) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def entries_of(text: str, key: str) -> tuple[list[object], bool] | None:
    """The list under `key` of the reply's object, and whether the object stands alone; None without such a list."""
    holder = find_object(text, key)
    entries = holder.values[key] if holder else None
    return (entries, holder.bare) if holder and isinstance(entries, list) else None


def parse_extraction(text: str) -> Extraction:
    """The entries of `{"memory_list": [{"key", "value", "memory_type"?, "tags"?}]}`.

    An entry that is not an object, lacks a value or repeats another is left out. A missing key becomes empty;
    tags that are not a list of strings and an unknown memory type are dropped.
    """
    entries = entries_of(text, "memory_list")
    if entries is None:
        return Extraction((), 0.0)
    candidates, form = _read(entries, _candidate, lambda candidate: candidate.text.lower())
    return Extraction(tuple(candidates), form)


def _candidate(values: dict[str, object]) -> tuple[Candidate, bool] | None:
    """The candidate of an entry, and whether the entry was whole; None without a value."""
    value = one_line(values.get("value"))
    if value is None:
        return None
    key, kind, entry_tags = one_line(values.get("key")), values.get("memory_type"), values.get("tags", [])
    tags = [one_line(tag) for tag in entry_tags] if isinstance(entry_tags, list) else [None]
    known = isinstance(kind, str) and kind in KINDS
    candidate = Candidate(
        value=value,
        key=key or "",
        kind=str(kind) if known else "fact",
        tags=() if None in tags else tuple(tag for tag in tags if tag),
    )
    return candidate, isinstance(values.get("key"), str) and (known or kind is None) and None not in tags


def parse_topics(text: str, turns: int) -> Topics:
    """The entries of `{"extracted_memories": [{"summary", "reference": [...]}]}`; none for NO_TRAIT.

    References are places from 0 to `turns` - 1; others are left out, as are entries without a summary and repetitions.
    """
    entries = entries_of(text, "extracted_memories")
    if entries is None:
        return Topics((), 0.0)
    topics, form = _read(entries, lambda values: _topic(values, turns), lambda topic: topic.summary.lower())
    return Topics(tuple(topics), form)


def _topic(values: dict[str, object], turns: int) -> tuple[Topic, bool] | None:
    summary, reference = one_line(values.get("summary")), values.get("reference")
    if summary is None:
        return None
    references = reference if isinstance(reference, list) else [reference]
    numbers = [integer(value) for value in references]
    places = tuple(dict.fromkeys(number for number in numbers if number is not None and 0 <= number < turns))
    return Topic(summary, places), isinstance(reference, list) and 0 < len(places) == len(reference)


def _read(
    reply: tuple[list[object], bool],
    read: Callable[[dict[str, object]], tuple[E, bool] | None],
    name: Callable[[E], str],
) -> tuple[Sequence[E], float]:
    """The values that `read` makes of the entries, without repetitions by `name`, and the form."""
    entries, bare = reply
    by_name: dict[str, tuple[E, bool]] = {}
    for entry in entries:
        value_and_whole = read(entry) if isinstance(entry, dict) else None
        if value_and_whole is not None:
            by_name.setdefault(name(value_and_whole[0]), value_and_whole)
    usable = sum(1.0 if whole else 0.5 for _, whole in by_name.values())
    return [value for value, _ in by_name.values()], usable / (len(entries) + (not bare)) if by_name else 0.0

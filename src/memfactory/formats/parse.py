"""What a model's reply holds: a JSON object wherever it stands, and the memory entries in it. Pure; never raises.

A reply's `form` says how well it kept to its format: the share of its entries that could be used as they stand, where
an entry that had to be mended counts half and words around the object count as one entry more. It is 0 for a reply
without a usable entry, and so for an empty list: to write nothing down is never worth a reward of its own.
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
class FoundObject:
    """A JSON object of a reply. `bare` says that nothing stands around it, but for a code fence."""

    values: dict[str, object]
    bare: bool


@dataclass(frozen=True)
class Extraction:
    """What a reply wants remembered."""

    candidates: tuple[Candidate, ...]
    form: float


@dataclass(frozen=True)
class Topic:
    """What was said of one topic, and the places (from 0) of the turns that say it."""

    summary: str
    places: tuple[int, ...]


@dataclass(frozen=True)
class Topics:
    """The topics that a reply sums up."""

    topics: tuple[Topic, ...]
    form: float


def find_object(text: str, key: str) -> FoundObject | None:
    """The last complete JSON object after thinking that has `key` and lies in no other object; None without one.

    What cannot be read (cut off, nested too deep, a number of thousands of digits) is passed over, and the search ends
    after MOST_UNREADABLE braces that begin nothing readable: each may cost a look at all that follows.
    """
    said = after_thinking(text)
    found: FoundObject | None = None
    start = -1 if said is None else said.find("{")
    unreadable = 0
    while said is not None and start >= 0 and unreadable < MOST_UNREADABLE:
        end = start + 1
        read = _object_at(said, start)
        if read is None:
            unreadable += 1
        else:
            values, end = read
            if key in values:
                found = FoundObject(values, (said[:start].strip(), said[end:].strip()) in BARE)
        start = said.find("{", end)
    return found


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
    """An integer, or one that was written as a string of digits; None for anything else."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[0-9]{1,9}", value.strip()) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def entries_of(text: str, key: str) -> tuple[list[object], bool] | None:
    """The list under `key` of the reply's object, and whether the object stands alone; None without such a list."""
    found = find_object(text, key)
    entries = found.values[key] if found else None
    return (entries, found.bare) if found and isinstance(entries, list) else None


def parse_extraction(text: str) -> Extraction:
    """The entries of `{"memory_list": [{"key", "value", "memory_type"?, "tags"?}]}`.

    An entry that is no object, lacks a value or says again what another says is left out. A missing key becomes empty,
    tags that are no list of strings and an unknown memory type are dropped.
    """
    found = entries_of(text, "memory_list")
    if found is None:
        return Extraction((), 0.0)
    candidates, form = _read(found, _entry, lambda candidate: candidate.text.lower())
    return Extraction(tuple(candidates), form)


def _entry(values: dict[str, object]) -> tuple[Candidate, bool] | None:
    """An entry and whether it was whole; None where it has no value."""
    value = one_line(values.get("value"))
    if value is None:
        return None
    key, kind, given = one_line(values.get("key")), values.get("memory_type"), values.get("tags", [])
    tags = [one_line(tag) for tag in given] if isinstance(given, list) else [None]
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
    found = entries_of(text, "extracted_memories")
    if found is None:
        return Topics((), 0.0)
    topics, form = _read(found, lambda values: _topic(values, turns), lambda topic: topic.summary.lower())
    return Topics(tuple(topics), form)


def _topic(values: dict[str, object], turns: int) -> tuple[Topic, bool] | None:
    summary, given = one_line(values.get("summary")), values.get("reference")
    if summary is None:
        return None
    references = given if isinstance(given, list) else [given]
    numbers = [integer(reference) for reference in references]
    places = tuple(dict.fromkeys(number for number in numbers if number is not None and 0 <= number < turns))
    return Topic(summary, places), isinstance(given, list) and 0 < len(places) == len(given)


def _read(
    found: tuple[list[object], bool],
    read: Callable[[dict[str, object]], tuple[E, bool] | None],
    name: Callable[[E], str],
) -> tuple[Sequence[E], float]:
    """What `read` makes of the entries, without repetitions by `name`, and the form."""
    entries, bare = found
    kept: dict[str, tuple[E, bool]] = {}
    for entry in entries:
        one = read(entry) if isinstance(entry, dict) else None
        if one is not None:
            kept.setdefault(name(one[0]), one)
    marks = sum(1.0 if whole else 0.5 for _, whole in kept.values())
    return [one for one, _ in kept.values()], marks / (len(entries) + (not bare)) if kept else 0.0

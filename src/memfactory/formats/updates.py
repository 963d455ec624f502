"""Reads the operations of a reply on the memory bank, for candidates and the items that they touch. Pure.

The operations can always be applied: an illegal one changes nothing. `form` is the fraction of the items and candidates
that exactly one legal operation decides. Every entry that names nothing shown counts as one more to decide, and so do
words around the reply's object. A reply without a legal operation has 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memfactory.formats.parse import entries_of, integer, one_line
from memfactory.formats.provenance import closest
from memfactory.memory.operations import Add, Delete, Keep, Operation, Update
from memfactory.text import after_thinking
from memfactory.types import Candidate, MemoryItem

NAMES = {
    "NONE": "NONE",
    "NOOP": "NONE",
    "NO OP": "NONE",
    "NO OPERATION": "NONE",
    "DEL": "DEL",
    "DELETE": "DEL",
    "ADD": "ADD",
    "UPDATE": "UPDATE",
}
ADD_LINE = re.compile(r"add\(\s*\)", re.IGNORECASE)
MERGE_LINE = re.compile(r"merge\(\s*([0-9]{1,9})\s*,(.*)\)", re.IGNORECASE)


@dataclass(frozen=True)
class Decision:
    """The operations of a reply and how well it kept to its format."""

    operations: tuple[Operation, ...]
    form: float


def _name(word: object) -> str | None:
    """The operation that a word names, in any case and by any synonym of NAMES; None for any other value."""
    return NAMES.get(re.sub(r"[\s_-]+", " ", word.strip()).upper()) if isinstance(word, str) else None


def parse_operations(text: str, items: Sequence[MemoryItem], candidates: Sequence[Candidate]) -> Decision:
    """The reply `{"operations": [{"id", "op", "key"?, "value"?}]}` where the numbers 1, 2, ... are `items`, then
    `candidates`.

    An item is kept (NONE) or deleted (DEL). A candidate is added (ADD), added with a new value and perhaps a new key
    (UPDATE), or left out (NONE). The first of several operations on one number counts; NONE stands for an illegal or
    missing one. An UPDATE without a value is a repaired ADD.
    """
    operations: list[Operation] = [*(Keep(item.id) for item in items), *(Keep() for _ in candidates)]
    reply = entries_of(text, "operations")
    if reply is None:
        return Decision(tuple(operations), 0.0)
    entries, bare = reply
    by_number: dict[int, list[dict[str, object]]] = {}
    strays = 0
    for entry in entries:
        number = integer(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not 1 <= number <= len(operations):
            strays += 1
        elif isinstance(entry, dict):
            by_number.setdefault(number, []).append(entry)
    decided = 0
    for number, same_number in by_number.items():
        place = number - 1
        if place < len(items):
            operation, whole = _on_item(same_number[0], items[place])
        else:
            operation, whole = _on_candidate(same_number[0], candidates[place - len(items)])
        decided += whole and len(same_number) == 1
        operations[place] = operation or operations[place]
    return Decision(tuple(operations), decided / (len(operations) + strays + (not bare)) if decided else 0.0)


def _on_item(entry: dict[str, object], item: MemoryItem) -> tuple[Operation | None, bool]:
    legal: dict[str | None, Operation] = {"NONE": Keep(item.id), "DEL": Delete(item.id)}
    operation = legal.get(_name(entry.get("op")))
    return operation, operation is not None


def _on_candidate(entry: dict[str, object], candidate: Candidate) -> tuple[Operation | None, bool]:
    name, value = _name(entry.get("op")), one_line(entry.get("value"))
    if name == "UPDATE" and value is not None:
        return Add(replace(candidate, value=value, key=one_line(entry.get("key")) or candidate.key)), True
    legal: dict[str | None, Operation] = {"NONE": Keep(), "ADD": Add(candidate), "UPDATE": Add(candidate)}
    operation = legal.get(name)
    return operation, operation is not None and name != "UPDATE"


def parse_mem0(text: str, items: Sequence[MemoryItem], candidates: Sequence[Candidate]) -> Decision:
    """The reply `{"memory": [{"id", "text", "event", "old_memory"?}]}` where the ids "0", "1", ... are `items`.

    An item is kept (NONE), deleted (DELETE) or gets a new text under its own id (UPDATE); ADD is a new item under any
    id. A text takes sources, time and namespace from the candidate that shares the most words with it. The first of
    several operations on one id counts; an unknown id and a missing item change nothing. More new items than candidates
    lower `form`, so that writing many does not raise it.
    """
    operations: list[Operation] = [Keep(item.id) for item in items]
    reply = entries_of(text, "memory")
    if reply is None:
        return Decision(tuple(operations), 0.0)
    entries, bare = reply
    by_number: dict[int, list[dict[str, object]]] = {}
    added: dict[str, Operation] = {}
    strays = 0
    for entry in entries:
        values = entry if isinstance(entry, dict) else {}
        number, new = integer(values.get("id")), one_line(values.get("text"))
        if _name(values.get("event")) == "ADD" and new is not None and new.lower() not in added:
            added[new.lower()] = Add(_as_candidate(new, candidates))
        elif _name(values.get("event")) != "ADD" and number is not None and 0 <= number < len(items):
            by_number.setdefault(number, []).append(values)
        else:
            strays += 1
    decided = min(len(added), len(candidates))
    for number, same_number in by_number.items():
        operation = _on_remembered(same_number[0], items[number], candidates)
        decided += operation is not None and len(same_number) == 1
        operations[number] = operation or operations[number]
    expected = len(items) + len(added) + strays + (not bare)
    return Decision((*operations, *added.values()), decided / expected if decided else 0.0)


def _on_remembered(entry: dict[str, object], item: MemoryItem, candidates: Sequence[Candidate]) -> Operation | None:
    name, new = _name(entry.get("event")), one_line(entry.get("text"))
    if name == "NONE" or (name == "UPDATE" and new == item.text):
        return Keep(item.id)
    if name == "UPDATE" and new is not None:
        source = closest(new, candidates) or Candidate(new)
        key = None if replace(item, value=new).text == new else ""
        return Update(item.id, new, key, source.sources, source.time)
    return Delete(item.id) if name == "DEL" else None


def _as_candidate(text: str, candidates: Sequence[Candidate]) -> Candidate:
    """The candidate whose text is `text`, else a new one with the provenance of the closest candidate."""
    same = next((candidate for candidate in candidates if candidate.text.lower() == text.lower()), None)
    return same or replace(closest(text, candidates) or Candidate(text), key="", value=text)


def parse_merges(text: str, items: Sequence[MemoryItem], candidate: Candidate) -> Decision:
    """The reply of one action a line: `Add()`, or `Merge(index, summary)` where the indices 0, 1, ... are `items`.

    The summary goes from the first comma to the line's last parenthesis. A line is left out and lowers `form` if it is
    not an action, repeats one, names no item or has no summary. Without any action the candidate is added.
    """
    lines = [line for line in (after_thinking(text) or "").splitlines() if line.strip()]
    by_item: dict[str, Operation] = {}
    for line in map(str.strip, lines):
        merge = MERGE_LINE.fullmatch(line)
        summary = one_line(merge.group(2)) if merge else None
        index = int(merge.group(1)) if merge else -1
        if ADD_LINE.fullmatch(line):
            by_item.setdefault("", Add(candidate))
        elif summary is not None and index < len(items):
            id = items[index].id
            by_item.setdefault(id, Update(id, summary, None, candidate.sources, candidate.time))
    return Decision(tuple(by_item.values()) or (Add(candidate),), len(by_item) / len(lines) if by_item else 0.0)

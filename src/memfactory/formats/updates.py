"""What a model's reply decides about new entries and the items they touch, as operations on the bank. Pure.

Whatever a reply says, the operations can be applied: what is no legal operation changes nothing. `form` is the share
of what was to be decided that exactly one legal operation decides, where every entry that names nothing that was shown
counts as one thing more, and so do words around the reply's object; 0 for a reply without a legal operation.
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
    """What is to be done with the bank."""

    operations: tuple[Operation, ...]
    form: float


def _name(said: object) -> str | None:
    """The operation that is meant; None for none. Case and the synonyms in NAMES do not matter."""
    return NAMES.get(re.sub(r"[\s_-]+", " ", said.strip()).upper()) if isinstance(said, str) else None


def parse_operations(text: str, items: Sequence[MemoryItem], candidates: Sequence[Candidate]) -> Decision:
    """The reply `{"operations": [{"id", "op", "key"?, "value"?}]}` where the numbers 1, 2, ... are `items`, then
    `candidates`.

    An item is kept (NONE) or deleted (DEL); a candidate is taken up (ADD), taken up with another value and, where one
    is given, another key (UPDATE), or left out (NONE). Of several operations on one number the first counts, and
    where it is not legal, as where there is none, NONE does. An UPDATE without a value is an ADD that was mended.
    """
    kept: list[Operation] = [*(Keep(item.id) for item in items), *(Keep() for _ in candidates)]
    found = entries_of(text, "operations")
    if found is None:
        return Decision(tuple(kept), 0.0)
    entries, bare = found
    said: dict[int, list[dict[str, object]]] = {}
    strays = 0
    for entry in entries:
        number = integer(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not 1 <= number <= len(kept):
            strays += 1
        elif isinstance(entry, dict):
            said.setdefault(number, []).append(entry)
    decided = 0
    for number, given in said.items():
        place = number - 1
        if place < len(items):
            operation, whole = _on_item(given[0], items[place])
        else:
            operation, whole = _on_candidate(given[0], candidates[place - len(items)])
        decided += whole and len(given) == 1
        kept[place] = operation or kept[place]
    return Decision(tuple(kept), decided / (len(kept) + strays + (not bare)) if decided else 0.0)


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

    An item is kept (NONE), deleted (DELETE) or gets a new text under its own id (UPDATE); ADD is a new item, whatever
    its id. A text takes sources, time and namespace from the candidate that shares the most words with it. Of several
    operations on one id the first counts; an id that is not there changes nothing, as does an item that is left out.
    More new items than there are candidates lower `form`, so that it cannot be raised by writing many.
    """
    kept: list[Operation] = [Keep(item.id) for item in items]
    found = entries_of(text, "memory")
    if found is None:
        return Decision(tuple(kept), 0.0)
    entries, bare = found
    said: dict[int, list[dict[str, object]]] = {}
    added: dict[str, Operation] = {}
    strays = 0
    for entry in entries:
        values = entry if isinstance(entry, dict) else {}
        number, new = integer(values.get("id")), one_line(values.get("text"))
        if _name(values.get("event")) == "ADD" and new is not None and new.lower() not in added:
            added[new.lower()] = Add(_as_candidate(new, candidates))
        elif _name(values.get("event")) != "ADD" and number is not None and 0 <= number < len(items):
            said.setdefault(number, []).append(values)
        else:
            strays += 1
    decided = min(len(added), len(candidates))
    for number, given in said.items():
        operation = _on_remembered(given[0], items[number], candidates)
        decided += operation is not None and len(given) == 1
        kept[number] = operation or kept[number]
    expected = len(items) + len(added) + strays + (not bare)
    return Decision((*kept, *added.values()), decided / expected if decided else 0.0)


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
    """`text` as an entry: one of `candidates` where it says just that, else a new one with the nearest one's origin."""
    same = next((candidate for candidate in candidates if candidate.text.lower() == text.lower()), None)
    return same or replace(closest(text, candidates) or Candidate(text), key="", value=text)


def parse_merges(text: str, items: Sequence[MemoryItem], candidate: Candidate) -> Decision:
    """The reply of one action a line: `Add()`, or `Merge(index, summary)` where the indices 0, 1, ... are `items`.

    The summary goes from the first comma to the line's last parenthesis. A line that is no action, repeats one, names
    no item or has no summary is left out and counts against `form`. Without any action the candidate is added.
    """
    lines = [line for line in (after_thinking(text) or "").splitlines() if line.strip()]
    found: dict[str, Operation] = {}
    for line in map(str.strip, lines):
        merge = MERGE_LINE.fullmatch(line)
        summary = one_line(merge.group(2)) if merge else None
        index = int(merge.group(1)) if merge else -1
        if ADD_LINE.fullmatch(line):
            found.setdefault("", Add(candidate))
        elif summary is not None and index < len(items):
            id = items[index].id
            found.setdefault(id, Update(id, summary, None, candidate.sources, candidate.time))
    return Decision(tuple(found.values()) or (Add(candidate),), len(found) / len(lines) if found else 0.0)

"""Digests that name the contents and order of tasks and rows: equal data has equal digests, in any file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b

from memfactory.data.base import GeneratedRows, Row
from memfactory.types import MemoryItem, Task, Utterance

PROBES = 64
"""The number of rows of a generated dataset that count, evenly spread: one generator makes them all."""


def data_hash(tasks: Sequence[Task]) -> str:
    """16 hexadecimal digits that name the tasks' contents and order. Values that many tasks share are read once."""
    digest = hashlib.sha256()
    read: dict[int, str] = {}

    def name_of(values: Sequence[MemoryItem] | Sequence[Utterance]) -> str:
        if id(values) not in read:
            text = json.dumps([vars(value) for value in values], sort_keys=True)
            read[id(values)] = hashlib.sha256(text.encode()).hexdigest()
        return read[id(values)]

    for task in tasks:
        values: dict[str, object] = {
            "id": task.id,
            "question": task.question,
            "answers": task.answers,
            "context": task.context,
            "memory": name_of(task.memory) if task.memory else [],
            "messages": [asdict(message) for message in task.messages],
        }
        # Added only if set, so that tasks without memory banks keep their hashes.
        if task.related is not None:
            values["related"] = task.related
        if task.conversation:
            values["conversation"] = name_of(task.conversation)
        if task.evidence:
            values["evidence"] = task.evidence
        digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def rows_hash(rows: Sequence[Row]) -> str:
    """16 hexadecimal digits that name the rows' values and order.

    Of generated rows a sample counts, and all rows of the datasets that they are mixed from.
    """
    digest = hashlib.sha256(str(len(rows)).encode())
    counted: Sequence[Row] = rows
    if isinstance(rows, GeneratedRows):
        counted = [rows[index * len(rows) // PROBES] for index in range(PROBES)]
        for part in rows.mixed:
            digest.update(rows_hash(part).encode())
    for row in counted:
        digest.update(json.dumps([dict(row.values), row.problem], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def digest_of(text: str) -> int:
    """A number that only `text` decides: articles and questions are held out in its order."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")

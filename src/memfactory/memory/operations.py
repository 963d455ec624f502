"""Operations on a memory bank as values, and the outcome of each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from memfactory.types import Candidate


@dataclass(frozen=True)
class Add:
    """Add a new item."""

    candidate: Candidate


@dataclass(frozen=True)
class Update:
    """Give item `id` a new `value`, and a new `key` unless None; `sources` are appended to its sources."""

    id: str
    value: str
    key: str | None = None
    sources: tuple[str, ...] = ()
    time: str | None = None


@dataclass(frozen=True)
class Delete:
    """Remove item `id`; its history stays."""

    id: str


@dataclass(frozen=True)
class Keep:
    """Change nothing: keep item `id`, or ignore a candidate (None)."""

    id: str | None = None


@dataclass(frozen=True)
class Invalid:
    """Model output that is not an operation, and the reason."""

    output: str
    reason: str


Operation = Add | Update | Delete | Keep | Invalid


@dataclass(frozen=True)
class Outcome:
    """The outcome of one operation.

    `id` is the item it touched. `reason` explains an invalid operation, or one that another invalid operation blocked.
    """

    status: Literal["applied", "noop", "invalid"]
    id: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ApplyReport:
    """The outcome of each operation, in order. Unless `committed`, the bank did not change."""

    outcomes: tuple[Outcome, ...]
    committed: bool


def item_id(operation: Operation) -> str | None:
    """The id of the existing item that `operation` names, if it names one."""
    return operation.id if isinstance(operation, Update | Delete | Keep) else None


def invalid_reasons(operations: Sequence[Operation], exists: Callable[[str], bool]) -> list[str | None]:
    """The reason why each operation is invalid; None for a valid one. `exists` says whether the bank has an id."""
    reasons: list[str | None] = []
    touched: set[str] = set()
    for operation in operations:
        id = item_id(operation)
        if isinstance(operation, Invalid):
            reasons.append(operation.reason)
        elif id is not None and not exists(id):
            reasons.append(f"the bank has no item {id!r}")
        elif id is not None and id in touched:
            reasons.append(f"a second operation on the item {id!r}")
        else:
            reasons.append(None)
        if id is not None:
            touched.add(id)
    return reasons


def rejected(operations: Sequence[Operation], reasons: Sequence[str | None]) -> ApplyReport:
    """The report of operations of which at least one is invalid: none is applied."""
    first = next(number for number, reason in enumerate(reasons, 1) if reason)
    outcomes = [
        Outcome("invalid", item_id(operation), reason)
        if reason
        else Outcome("noop", item_id(operation), f"not committed: operation {first} is invalid")
        for operation, reason in zip(operations, reasons, strict=True)
    ]
    return ApplyReport(tuple(outcomes), committed=False)

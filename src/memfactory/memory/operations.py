"""Operations on a memory bank as values, and what became of each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memfactory.types import Candidate


@dataclass(frozen=True)
class Add:
    """A new item."""

    candidate: Candidate


@dataclass(frozen=True)
class Update:
    """Item `id` gets `value` (and `key` where one is given); `sources` join those that it has."""

    id: str
    value: str
    key: str | None = None
    sources: tuple[str, ...] = ()
    time: str | None = None


@dataclass(frozen=True)
class Delete:
    """Item `id` goes; its history stays."""

    id: str


@dataclass(frozen=True)
class Keep:
    """Nothing changes: an item (`id`) is kept, or a candidate (None) is not taken up."""

    id: str | None = None


@dataclass(frozen=True)
class Invalid:
    """What a model said in place of an operation, and why it is none."""

    said: str
    reason: str


Operation = Add | Update | Delete | Keep | Invalid


@dataclass(frozen=True)
class Outcome:
    """What became of one operation. `id` is the item it touched, `reason` why it is invalid, or could have been done
    but was not because another is."""

    status: Literal["applied", "noop", "invalid"]
    id: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ApplyReport:
    """The outcome of each operation, in order. Unless `committed`, the bank is as it was."""

    outcomes: tuple[Outcome, ...]
    committed: bool

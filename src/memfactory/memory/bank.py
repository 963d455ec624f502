"""A memory bank: items with provenance, versions and history, changed by operations and found by search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from memfactory.memory.operations import ApplyReport, Operation
from memfactory.memory.options import MemoryConfig, Search
from memfactory.types import Candidate, MemoryItem


@dataclass(frozen=True)
class Found:
    """An item and how well it matches; higher is better."""

    item: MemoryItem
    score: float


@dataclass(frozen=True)
class Event:
    """One change: the item before it (None: it is new) and after it (None: it is deleted)."""

    before: MemoryItem | None
    after: MemoryItem | None


class MemoryBank:
    """See the contract in the brief; this body is replaced by the memory package's author."""

    def __len__(self) -> int:
        raise NotImplementedError

    def add(self, candidates: Iterable[Candidate]) -> list[str]:
        raise NotImplementedError

    def update(self, id: str, value: str, *, key: str | None = None, sources: tuple[str, ...] = ()) -> MemoryItem:
        raise NotImplementedError

    def delete(self, id: str) -> MemoryItem:
        raise NotImplementedError

    def get(self, id: str) -> MemoryItem | None:
        raise NotImplementedError

    def list(self, namespaces: Sequence[str] | None = None) -> list[MemoryItem]:
        raise NotImplementedError

    def search(
        self,
        query: str,
        k: int,
        *,
        mode: Search | None = None,
        namespaces: Sequence[str] | None = None,
        min_score: float | None = None,
    ) -> list[Found]:
        raise NotImplementedError

    def history(self, id: str) -> list[Event]:
        raise NotImplementedError

    def apply(self, operations: Sequence[Operation]) -> ApplyReport:
        raise NotImplementedError

    def fork(self) -> MemoryBank:
        raise NotImplementedError

    def embed(self, texts: Sequence[str]) -> numpy.ndarray:
        raise NotImplementedError

    def embed_query(self, query: str) -> numpy.ndarray:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class BankSource:
    """Opens the banks of one run: one embedder, one cache of vectors, shared by every bank and fork."""

    def __init__(self, config: MemoryConfig | None = None) -> None:
        self.config = config or MemoryConfig()

    def open(self, items: Sequence[MemoryItem] = ()) -> MemoryBank:
        """A bank of its own that holds `items`. Equal items share what was computed for them."""
        raise NotImplementedError

    def load(self, folder: Path) -> MemoryBank:
        raise NotImplementedError

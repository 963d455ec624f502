"""A memory bank: items with provenance, versions and history, changed by operations and found by search."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memfactory.memory.contents import Base, Contents, base_of
from memfactory.memory.embedder import Vectors, VectorStore
from memfactory.memory.embedders import build_embedder
from memfactory.memory.operations import Add, ApplyReport, Delete, Invalid, Keep, Operation, Outcome, Update
from memfactory.memory.options import MemoryConfig, Search
from memfactory.memory.persistence import load_bank, save_bank
from memfactory.memory.search import Searcher
from memfactory.memory.vector_cache import CachedEmbedder
from memfactory.types import Candidate, Event, MemoryItem

__all__ = ["BankSource", "Event", "Found", "MemoryBank"]

KEPT_BASES = 32


@dataclass(frozen=True)
class Found:
    """An item and how well it matches; higher is better."""

    item: MemoryItem
    score: float


class MemoryBank:
    """Opened by a BankSource. Items keep their order of insertion; what is searched is `wording.item.text`.

    Times come in with what happened, never from a clock. An item whose text is empty matches nothing. A bank is not for
    two threads at once: also a search may rearrange what it holds.
    """

    def __init__(self, source: BankSource, contents: Contents, searcher: Searcher) -> None:
        self._source = source
        self._contents = contents
        self._shared = searcher

    def __len__(self) -> int:
        return len(self._contents)

    def add(self, candidates: Iterable[Candidate]) -> list[str]:
        """Make an item of each candidate; their ids: the next of "m1", "m2", ... that no item ever had."""
        return [self._add(candidate) for candidate in candidates]

    def update(
        self, id: str, value: str, *, key: str | None = None, sources: tuple[str, ...] = (), time: str | None = None
    ) -> MemoryItem:
        """The item `id` in its next version, with `value`, `key` if given, and `sources` after those that it has.

        `time` becomes its `updated_at`. Raises LookupError where there is no such item.
        """
        old = self._existing(id)
        new = replace(
            old,
            value=value,
            key=old.key if key is None else key,
            sources=tuple(dict.fromkeys((*old.sources, *sources))),
            updated_at=old.updated_at if time is None else time,
            version=old.version + 1,
        )
        self._contents.replace(new)
        return new

    def delete(self, id: str) -> MemoryItem:
        """Remove the item `id` and return it; its history stays. Raises LookupError where there is no such item."""
        old = self._existing(id)
        self._contents.remove(id)
        return old

    def get(self, id: str) -> MemoryItem | None:
        return self._contents.get(id)

    def history(self, id: str) -> list[Event]:
        """The changes of the item `id`, oldest first, also once it is deleted. An item given when the bank was
        opened enters it by an event as well."""
        return self._contents.history(id)

    def changes(self) -> tuple[Event, ...]:
        """Every change since the bank was opened, oldest first; a fork goes on counting where it began."""
        return self._contents.changes()

    @property
    def changed_times(self) -> int:
        """How many `changes` there are."""
        return self._contents.changed_times

    def apply(self, operations: Sequence[Operation]) -> ApplyReport:
        """Do all of `operations` in order, or none.

        Invalid are: an `Invalid`, an unknown id, a second operation on one id. Where one is, nothing is committed:
        it is reported "invalid" with the reason, and all others as "noop" with the reason "not committed: ...".
        """
        reasons = self._reasons(operations)
        if any(reasons):
            first = next(number for number, reason in enumerate(reasons, 1) if reason)
            return ApplyReport(
                tuple(
                    Outcome("invalid", _id(operation), reason)
                    if reason
                    else Outcome("noop", _id(operation), f"not committed: operation {first} is invalid")
                    for operation, reason in zip(operations, reasons, strict=True)
                ),
                committed=False,
            )
        return ApplyReport(tuple(self._perform(operation) for operation in operations), committed=True)

    def fork(self) -> MemoryBank:
        """A bank that begins as this one is now; neither sees what the other does from here on. Costs O(changes)."""
        contents = self._contents.fork()
        return MemoryBank(self._source, contents, self._searcher())

    def search(
        self,
        query: str,
        k: int,
        *,
        mode: Search | None = None,
        namespaces: Sequence[str] | None = None,
        min_score: float | None = None,
    ) -> list[Found]:
        """The `k` items that match `query` best, by score, then by order of insertion; of `namespaces` alone where they
        are given, and only those that score `min_score` at least.

        `mode` (None: the config's): "dense" scores the cosine of the vectors, "bm25" only items that share a word with
        the question, "hybrid" fuses the ranks of both.
        """
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        self._contents.settle()
        found = self._searcher().search(
            self._contents,
            query,
            k,
            mode=mode or self._source.config.search,
            embed_query=self.embed_query,
            namespaces=namespaces,
        )
        return [Found(item, score) for item, score in found if min_score is None or score >= min_score]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The unit vectors of texts that are searched: float32 [n, d]."""
        return self._source.embed(texts)

    def embed_query(self, query: str) -> Vectors:
        """The unit vector of what is searched for: float32 [d]."""
        return self._source.embed_query(query)

    def save(self, folder: Path) -> None:
        """Write items, history and vectors to `folder`, in place of the bank that is there: a kill leaves either.

        Raises MemFactoryError when the disk refuses.
        """
        items = tuple(self._contents)
        save_bank(folder, items, self._contents.events(), self._source.known(items), self._source.identity)

    def _searcher(self) -> Searcher:
        """What searches the base that the contents have now."""
        if self._shared.base is not self._contents.base:
            self._shared = self._source.searcher(self._contents.base)
        return self._shared

    def _add(self, candidate: Candidate) -> str:
        item = MemoryItem(
            self._contents.new_id(),
            candidate.key,
            candidate.value,
            candidate.kind,
            candidate.tags,
            candidate.sources,
            created_at=candidate.time,
            namespace=candidate.namespace,
        )
        self._contents.add(item)
        return item.id

    def _existing(self, id: str) -> MemoryItem:
        item = self._contents.get(id)
        if item is None:
            raise LookupError(f"the bank has no item {id!r}; it holds {len(self)}")
        return item

    def _reasons(self, operations: Sequence[Operation]) -> list[str | None]:
        """Why each operation is invalid; None: it is not."""
        reasons: list[str | None] = []
        touched: set[str] = set()
        for operation in operations:
            id = _id(operation)
            if isinstance(operation, Invalid):
                reasons.append(operation.reason)
            elif id is not None and self.get(id) is None:
                reasons.append(f"the bank has no item {id!r}")
            elif id is not None and id in touched:
                reasons.append(f"a second operation on the item {id!r}")
            else:
                reasons.append(None)
            if id is not None:
                touched.add(id)
        return reasons

    def _perform(self, operation: Operation) -> Outcome:
        if isinstance(operation, Add):
            return Outcome("applied", self._add(operation.candidate))
        if isinstance(operation, Update):
            self.update(
                operation.id, operation.value, key=operation.key, sources=operation.sources, time=operation.time
            )
            return Outcome("applied", operation.id)
        if isinstance(operation, Delete):
            self.delete(operation.id)
            return Outcome("applied", operation.id)
        assert isinstance(operation, Keep)
        return Outcome("noop", operation.id)

    # Last, because within the class it hides the builtin of its name.
    def list(self, namespaces: Sequence[str] | None = None) -> list[MemoryItem]:
        """The items, of `namespaces` alone where they are given, in order of insertion."""
        if namespaces is None:
            return [*self._contents]
        wanted = set(namespaces)
        return [item for item in self._contents if item.namespace in wanted]


class BankSource:
    """Opens the banks of one run: one embedder, one store of vectors, shared by every bank and fork."""

    def __init__(self, config: MemoryConfig | None = None) -> None:
        self.config = config or MemoryConfig()
        embedder = build_embedder(self.config.embedder)
        if self.config.cache is not None and self.config.embedder.kind != "lexical":
            embedder = CachedEmbedder(embedder, Path(self.config.cache).expanduser())
        self.identity = embedder.identity
        self._texts = VectorStore(embedder.embed)
        self._queries = VectorStore(embedder.embed_queries)
        self._opened: OrderedDict[tuple[MemoryItem, ...], Searcher] = OrderedDict()

    def open(self, items: Sequence[MemoryItem] = ()) -> MemoryBank:
        """A bank of its own that holds `items`. Equal items share what was computed for them.

        Raises DataError where two items have one id.
        """
        key = tuple(items)
        searcher = self._opened.pop(key, None) or self.searcher(base_of(key))
        self._opened[key] = searcher
        while len(self._opened) > KEPT_BASES:
            self._opened.popitem(last=False)
        return MemoryBank(self, Contents(searcher.base), searcher)

    def load(self, folder: Path) -> MemoryBank:
        """The bank that was saved to `folder`. Its vectors are made anew where they do not fit this embedder.

        A bank that is opened with the same items afterwards goes on from its history, so ids are not given out twice.
        Raises DataError for a folder without a bank, or with one that was damaged.
        """
        stored = load_bank(folder, self.identity)
        if stored.vectors is not None:
            self._texts.put([item.text for item in stored.items], stored.vectors)
        searcher = self.searcher(Base(stored.items, stored.events))
        self._opened[stored.items] = searcher
        return MemoryBank(self, Contents(searcher.base), searcher)

    def known(self, items: Sequence[MemoryItem]) -> Vectors | None:
        """The vectors of `items` as far as they were embedded already; None where some never were.

        Those that were let go, since only so many are held, are computed again.
        """
        texts = [item.text for item in items]
        if not texts or not (self._texts.has(texts) or self._texts.forgetful):
            return None
        return self.embed(texts)

    def searcher(self, base: Base) -> Searcher:
        return Searcher(base, self.embed, self.config.index)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See MemoryBank.embed. Each text is embedded once."""
        return self._texts.vectors(texts)

    def embed_query(self, query: str) -> Vectors:
        """See MemoryBank.embed_query."""
        vector: Vectors = self._queries.vectors([query])[0]
        return vector


def _id(operation: Operation) -> str | None:
    return operation.id if isinstance(operation, Update | Delete | Keep) else None

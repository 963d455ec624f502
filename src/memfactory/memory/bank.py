"""A memory bank: items with provenance, versions and history, changed by operations and found by search."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memfactory.files.places import expanded
from memfactory.memory.contents import Base, Contents, base_of
from memfactory.memory.embedder import Vectors, VectorStore
from memfactory.memory.embedders import build_embedder
from memfactory.memory.operations import (
    Add,
    ApplyReport,
    Delete,
    Operation,
    Outcome,
    Update,
    invalid_reasons,
    item_id,
    rejected,
)
from memfactory.memory.options import MemoryConfig, Search
from memfactory.memory.persistence import load_bank, save_bank
from memfactory.memory.search import Searcher
from memfactory.memory.vector_cache import CachedEmbedder
from memfactory.types import Candidate, Event, MemoryItem

__all__ = ["BankSource", "Event", "Match", "MemoryBank"]

CACHED_BASES = 32


@dataclass(frozen=True)
class Match:
    """A search result: an item and its score. A higher score is a better match.

    >>> Match(MemoryItem("m1", "", "Anna lives in Oslo."), 0.5).score
    0.5
    """

    item: MemoryItem
    score: float


class MemoryBank:
    """Memory items with versions, history and search.

    >>> bank = MemoryBank()
    >>> bank.add("Anna moved to Oslo.", time="2024-05-01")
    'm1'
    >>> bank.add("Ben has a dog called Rex.")
    'm2'
    >>> bank.search("Where does Anna live?", k=1)[0].item.value
    'Anna moved to Oslo.'
    >>> bank.update("m1", "Anna moved to Rome.", time="2025-02-11").version
    2
    >>> bank.delete("m2").value
    'Ben has a dog called Rex.'
    >>> [event.after.value for event in bank.history("m1")]
    ['Anna moved to Oslo.', 'Anna moved to Rome.']
    >>> [item.value for item in bank.list()]
    ['Anna moved to Rome.']

    Items keep their order of insertion. Search compares the query with `item.text`; an item with an empty text matches
    nothing. Times come from the data, never from a clock. `options` choose the embedder (default: lexical, which needs
    no model), the search mode and the index. A bank is not thread-safe: a search may reorganise it.
    """

    def __init__(self, items: Iterable[MemoryItem] = (), options: MemoryConfig | None = None) -> None:
        source = BankSource(options)
        self._connect(source, source.searcher(base_of(items)))

    def _connect(self, source: BankSource, searcher: Searcher, contents: Contents | None = None) -> MemoryBank:
        """Use the embedder of `source`, and `searcher` for the base of `contents` (default: its base, unchanged)."""
        self._source = source
        self._searcher = searcher
        self._contents = Contents(searcher.base) if contents is None else contents
        return self

    @classmethod
    def load(cls, folder: str | Path, options: MemoryConfig | None = None) -> MemoryBank:
        """The bank that `save` wrote to `folder`, history included.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     MemoryBank([MemoryItem("m1", "", "Anna lives in Oslo.")]).save(folder)
        ...     MemoryBank.load(folder).get("m1").value
        'Anna lives in Oslo.'

        Vectors of another embedder are computed again. Raises DataError for a folder without a bank and for a damaged
        bank.
        """
        return BankSource(options).load(Path(folder))

    def __len__(self) -> int:
        return len(self._contents)

    def __repr__(self) -> str:
        return f"<MemoryBank of {len(self)} item{'' if len(self) == 1 else 's'}>"

    def add(self, entry: str | Candidate, *, namespace: str = "", time: str | None = None) -> str:
        """Add an item and return its id: the next of "m1", "m2", ... that this bank never used.

        >>> bank = MemoryBank()
        >>> bank.add("Anna plays the cello.", namespace="anna")
        'm1'
        >>> bank.add(Candidate("Anna is a nurse.", key="job", kind="fact", tags=("work",)))
        'm2'

        `namespace` names the owner of the item and `time` is the time of the text. A Candidate brings both itself, and
        the other fields of an item too.
        """
        candidate = Candidate(entry, namespace=namespace, time=time) if isinstance(entry, str) else entry
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

    def update(
        self, id: str, value: str, *, key: str | None = None, sources: tuple[str, ...] = (), time: str | None = None
    ) -> MemoryItem:
        """Give the item `id` a new `value` and return its next version.

        >>> bank = MemoryBank()
        >>> id = bank.add("Anna lives in Oslo.")
        >>> bank.update(id, "Anna lives in Rome.", time="2025-02-11").updated_at
        '2025-02-11'

        `key` replaces the key, `sources` are appended to the item's sources and `time` becomes `updated_at`. Raises
        LookupError if the bank has no such item.
        """
        before = self._existing(id)
        after = replace(
            before,
            value=value,
            key=before.key if key is None else key,
            sources=tuple(dict.fromkeys((*before.sources, *sources))),
            updated_at=before.updated_at if time is None else time,
            version=before.version + 1,
        )
        self._contents.replace(after)
        return after

    def delete(self, id: str) -> MemoryItem:
        """Remove the item `id` and return it. Its history stays. Raises LookupError if the bank has no such item.

        >>> bank = MemoryBank()
        >>> bank.delete(bank.add("Anna lives in Oslo.")).value
        'Anna lives in Oslo.'
        """
        item = self._existing(id)
        self._contents.remove(id)
        return item

    def get(self, id: str) -> MemoryItem | None:
        """The item `id`; None if the bank has no such item.

        >>> MemoryBank().get("m1") is None
        True
        """
        return self._contents.get(id)

    def history(self, id: str) -> list[Event]:
        """The changes of the item `id`, oldest first. The history of a deleted item remains.

        >>> bank = MemoryBank()
        >>> id = bank.add("Anna lives in Oslo.")
        >>> _ = bank.delete(id)
        >>> [(event.before is None, event.after is None) for event in bank.history(id)]
        [(True, False), (False, True)]

        An item that the bank was opened with has an event of its insertion too.
        """
        return self._contents.history(id)

    def changes(self) -> tuple[Event, ...]:
        """Every change since the bank was opened, oldest first. A fork starts with the changes of its origin."""
        return self._contents.changes()

    @property
    def changed_times(self) -> int:
        """The number of `changes`."""
        return self._contents.changed_times

    def apply(self, operations: Sequence[Operation]) -> ApplyReport:
        """Apply all `operations` in order, or none of them.

        >>> bank = MemoryBank()
        >>> bank.apply([Add(Candidate("Anna lives in Oslo.")), Delete("m7")]).outcomes[1].reason
        "the bank has no item 'm7'"
        >>> len(bank)
        0

        An operation is invalid if it is an `Invalid`, names an unknown id or is the second operation on one id. One
        invalid operation rejects all: its outcome is "invalid" with the reason, the others are "noop".
        """
        reasons = invalid_reasons(operations, lambda id: self.get(id) is not None)
        if any(reasons):
            return rejected(operations, reasons)
        return ApplyReport(tuple(self._perform(operation) for operation in operations), committed=True)

    def contents(self) -> Base:
        """The present items and every change that led to them."""
        return Base(tuple(self._contents), self._contents.events())

    def fork(self) -> MemoryBank:
        """A copy that shares nothing with this bank from here on. Costs O(changes), not O(items).

        >>> bank = MemoryBank()
        >>> fork = bank.fork()
        >>> _ = fork.add("Only the fork has this item.")
        >>> len(bank), len(fork)
        (0, 1)
        """
        contents = self._contents.fork()
        return _opened(self._source, self._current_searcher(), contents)

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        mode: Search | None = None,
        namespaces: str | Sequence[str] | None = None,
        min_score: float | None = None,
    ) -> list[Match]:
        """The `k` items that match `query` best, by score, then by order of insertion.

        >>> bank = MemoryBank()
        >>> _ = bank.add("Anna plays the cello."), bank.add("Ben plays chess.")
        >>> [match.item.value for match in bank.search("cello", mode="bm25")]
        ['Anna plays the cello.']

        `mode` is "dense" (cosine of the vectors), "bm25" (items that share a word with the query) or "hybrid" (fused
        ranks of both); None takes the mode of the options. `namespaces` (one or several) restricts the search,
        `min_score` drops weaker matches.
        """
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        self._contents.settle()
        ranking = self._current_searcher().search(
            self._contents,
            query,
            k,
            mode=mode or self._source.config.search,
            embed_query=self.embed_query,
            namespaces=[namespaces] if isinstance(namespaces, str) else namespaces,
        )
        return [Match(item, score) for item, score in ranking if min_score is None or score >= min_score]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The unit vectors of stored texts: float32 [n, d]."""
        return self._source.embed(texts)

    def embed_query(self, query: str) -> Vectors:
        """The unit vector of a query: float32 [d]."""
        return self._source.embed_query(query)

    def save(self, folder: str | Path) -> None:
        """Write items, history and vectors to `folder` and replace the bank in it.

        The replacement is atomic: a killed process leaves the old bank or the new one. Raises MemFactoryError if the
        disk refuses.
        """
        items = tuple(self._contents)
        vectors = self._source.known(items)
        save_bank(Path(folder), items, self._contents.events(), vectors, self._source.identity)

    def _current_searcher(self) -> Searcher:
        """The searcher of the present base."""
        if self._searcher.base is not self._contents.base:
            self._searcher = self._source.searcher(self._contents.base)
        return self._searcher

    def _existing(self, id: str) -> MemoryItem:
        item = self._contents.get(id)
        if item is None:
            raise LookupError(f"the bank has no item {id!r}; it holds {len(self)}")
        return item

    def _perform(self, operation: Operation) -> Outcome:
        """Apply a valid operation."""
        match operation:
            case Add(candidate):
                return Outcome("applied", self.add(candidate))
            case Update(id, value):
                self.update(id, value, key=operation.key, sources=operation.sources, time=operation.time)
                return Outcome("applied", id)
            case Delete(id):
                self.delete(id)
                return Outcome("applied", id)
            case _:
                return Outcome("noop", item_id(operation))

    # Last, because within the class it hides the builtin of its name.
    def list(self, namespaces: str | Sequence[str] | None = None) -> list[MemoryItem]:
        """The items in order of insertion; with `namespaces` only those of this or these.

        >>> bank = MemoryBank()
        >>> _ = bank.add("Anna sings.", namespace="anna"), bank.add("Ben cooks.", namespace="ben")
        >>> [item.value for item in bank.list("ben")]
        ['Ben cooks.']
        """
        if namespaces is None:
            return [*self._contents]
        names = {namespaces} if isinstance(namespaces, str) else {*namespaces}
        return [item for item in self._contents if item.namespace in names]


class BankSource:
    """Opens the banks of one run. All banks and forks share one embedder and one store of vectors.

    >>> BankSource().open([MemoryItem("m1", "", "Anna lives in Oslo.")]).search("Oslo")[0].item.id
    'm1'
    """

    def __init__(self, config: MemoryConfig | None = None) -> None:
        self.config = config or MemoryConfig()
        embedder = build_embedder(self.config.embedder)
        if self.config.cache is not None and self.config.embedder.kind != "lexical":
            embedder = CachedEmbedder(embedder, expanded(self.config.cache))
        self.identity = embedder.identity
        self._texts = VectorStore(embedder.embed)
        self._queries = VectorStore(embedder.embed_queries)
        self._bases: OrderedDict[tuple[MemoryItem, ...], Searcher] = OrderedDict()

    def open(self, items: Sequence[MemoryItem] = ()) -> MemoryBank:
        """A new bank that holds `items`. Banks of equal items share their vectors and index.

        Raises DataError if two items have the same id.
        """
        key = tuple(items)
        searcher = self._bases.pop(key, None) or self.searcher(base_of(key))
        self._bases[key] = searcher
        while len(self._bases) > CACHED_BASES:
            self._bases.popitem(last=False)
        return _opened(self, searcher)

    def load(self, folder: Path) -> MemoryBank:
        """The bank that was saved to `folder`. Vectors that do not fit this embedder are computed again.

        A bank that is opened with the same items afterwards continues its history, so no id is used twice. Raises
        DataError for a folder without a bank and for a damaged bank.
        """
        stored = load_bank(folder, self.identity)
        if stored.vectors is not None:
            self._texts.put([item.text for item in stored.items], stored.vectors)
        searcher = self.searcher(Base(stored.items, stored.events))
        self._bases[stored.items] = searcher
        return _opened(self, searcher)

    def adopt(self, bank: MemoryBank) -> None:
        """Let a bank that is opened with the items of `bank` continue its history."""
        base = bank.contents()
        self._bases[base.items] = self.searcher(base)

    def known(self, items: Sequence[MemoryItem]) -> Vectors | None:
        """The vectors of `items` if all were embedded before, else None.

        Vectors that the store dropped for lack of space are computed again.
        """
        texts = [item.text for item in items]
        if not texts or not (self._texts.has(texts) or self._texts.forgetful):
            return None
        return self.embed(texts)

    def searcher(self, base: Base) -> Searcher:
        """A searcher of `base` with this embedder and index."""
        return Searcher(base, self.embed, self.config.index)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See MemoryBank.embed. Each text is embedded once."""
        return self._texts.vectors(texts)

    def embed_query(self, query: str) -> Vectors:
        """See MemoryBank.embed_query."""
        vector: Vectors = self._queries.vectors([query])[0]
        return vector


def _opened(source: BankSource, searcher: Searcher, contents: Contents | None = None) -> MemoryBank:
    """A bank of `source` that shares the vectors and the index of `searcher`."""
    return MemoryBank.__new__(MemoryBank)._connect(source, searcher, contents)

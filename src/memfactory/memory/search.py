"""Search over the items of a bank: by vectors, by BM25, or by both. This file does not know how a bank changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy
from numpy.typing import NDArray

from memfactory.memory.bm25 import Postings
from memfactory.memory.contents import Base, Contents
from memfactory.memory.embedder import Vectors
from memfactory.memory.index import Backend, Places, VectorIndex, best, exact_scores
from memfactory.memory.options import Search
from memfactory.types import MemoryItem

Ranking = list[tuple[int, float]]
"""Places and scores, the best first. Places number the items of the base, then the added items."""

FUSED_RANKS = 100
"""Ranks of each search that count in a hybrid one; more if `k` is larger."""
RANK_OFFSET = 60


class Searcher:
    """Searches contents over one base. All forks share the vectors and the index of the base."""

    def __init__(self, base: Base, embed: Callable[[Sequence[str]], Vectors], backend: Backend) -> None:
        self.base = base
        self._embed = embed
        self._backend = backend

    def search(
        self,
        contents: Contents,
        query: str,
        k: int,
        *,
        mode: Search,
        embed_query: Callable[[str], Vectors],
        namespaces: Sequence[str] | None,
    ) -> list[tuple[MemoryItem, float]]:
        """The `k` best items and their scores: cosines, BM25's, or the fused ranks of both.

        By score, then by order of insertion. BM25 returns only items that share a word with the query.
        """
        fresh = _fresh(contents, namespaces)
        allowed = self._allowed(contents, namespaces)

        def dense(count: int) -> Ranking:
            return self._dense(embed_query(query), count, allowed, fresh)

        def bm25(count: int) -> Ranking:
            return self._bm25(query, count, allowed, fresh)

        if mode == "hybrid":
            depth = max(k, FUSED_RANKS)
            ranking = fused([dense(depth), bm25(depth)], k)
        else:
            ranking = dense(k) if mode == "dense" else bm25(k)
        items = dict(fresh)
        return [(items.get(place) or self.base.items[place], score) for place, score in ranking]

    def _dense(self, query: Vectors, k: int, allowed: Places | None, fresh: dict[int, MemoryItem]) -> Ranking:
        of_base = self._index.search(query, k, allowed) if self.base.items else []
        if not fresh:
            return of_base
        scores = exact_scores(self._embed([item.text for item in fresh.values()]), query)
        more = best(scores, numpy.array([*fresh], numpy.int64), k)
        return sorted([*of_base, *more], key=lambda one: (-one[1], one[0]))[:k]

    def _bm25(self, query: str, k: int, allowed: Places | None, fresh: dict[int, MemoryItem]) -> Ranking:
        mask: NDArray[numpy.bool_] | None = None
        if allowed is not None:
            mask = numpy.zeros(len(self.base.items), numpy.bool_)
            mask[allowed] = True
        of_base, of_fresh = self._postings.scores(query, mask, [item.text for item in fresh.values()])
        places = numpy.concatenate([numpy.arange(len(of_base)), numpy.array([*fresh], numpy.int64)])
        scores = numpy.concatenate([of_base, of_fresh])
        hits = numpy.flatnonzero(scores > 0)
        order = hits[numpy.lexsort((places[hits], -scores[hits]))][:k]
        return [(int(places[row]), float(scores[row])) for row in order]

    def _allowed(self, contents: Contents, namespaces: Sequence[str] | None) -> Places | None:
        """The unchanged places of the base in `namespaces`; None: all."""
        if namespaces is None and not contents.changed:
            return None
        mask = numpy.full(len(self.base.items), namespaces is None)
        for namespace in set(namespaces or ()):
            mask[self._namespaces.get(namespace, [])] = True
        mask[[*contents.changed]] = False
        return numpy.flatnonzero(mask)

    @cached_property
    def _index(self) -> VectorIndex:
        return VectorIndex(self._embed([item.text for item in self.base.items]), self._backend)

    @cached_property
    def _postings(self) -> Postings:
        return Postings([item.text for item in self.base.items])

    @cached_property
    def _namespaces(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, item in enumerate(self.base.items):
            places.setdefault(item.namespace, []).append(place)
        return places


def fused(rankings: Sequence[Ranking], k: int) -> Ranking:
    """Reciprocal rank fusion (Cormack et al. 2009): the sum of 1 / (60 + rank) over the rankings, ranks from 1."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (place, _) in enumerate(ranking, start=1):
            scores[place] = scores.get(place, 0.0) + 1 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))[:k]


def _fresh(contents: Contents, namespaces: Sequence[str] | None) -> dict[int, MemoryItem]:
    """The changed and added items, by their places."""
    begin = len(contents.base.items)
    now = {place: item for place, item in sorted(contents.changed.items()) if item is not None}
    now |= enumerate(contents.added.values(), begin)
    return now if namespaces is None else {place: item for place, item in now.items() if item.namespace in namespaces}

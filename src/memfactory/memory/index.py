"""Exact search of fixed vectors by numpy or faiss: both return the same items, ties included.

Each makes a float32 shortlist with a safety margin, and `exact_scores` ranks it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from memfactory.memory.embedder import Vectors

Backend = Literal["auto", "numpy", "faiss"]
Places = NDArray[numpy.int64]
FAISS_FROM = 100_000
"""The number of vectors from which `auto` is faiss; below, numpy is faster (docs/benchmarks/retrieval.md)."""


def exact_scores(vectors: Vectors, query: Vectors) -> Vectors:
    """The inner product of each row of `vectors` [n, d] with `query` [d].

    Summed in float64 row by row, so that a row's score depends on the row and the query alone.
    """
    wide: NDArray[numpy.float64] = numpy.ascontiguousarray(vectors, numpy.float64) * query
    return wide.sum(axis=1).astype(numpy.float32)


def best(scores: Vectors, places: Places, k: int) -> list[tuple[int, float]]:
    """The `k` best (place, score), by score, then by place; `places` rise."""
    order = numpy.argsort(-scores, kind="stable")[:k]
    return [(int(places[row]), float(scores[row])) for row in order]


class VectorIndex:
    """An index of unit or zero `vectors` [n, d], float32."""

    def __init__(self, vectors: Vectors, backend: Backend = "auto") -> None:
        self.vectors = numpy.ascontiguousarray(vectors, numpy.float32)
        self.backend = ("faiss" if len(vectors) >= FAISS_FROM else "numpy") if backend == "auto" else backend
        # The largest rounding difference of two float32 sums of d products whose magnitudes sum to 1 at most.
        self._tolerance = (vectors.shape[1] + 2) * 2.0**-23

    def search(self, query: Vectors, k: int, allowed: Places | None = None) -> list[tuple[int, float]]:
        """The `k` best (place, score) among the places `allowed` (rising; None: all), by score, then by place."""
        count = len(self.vectors) if allowed is None else len(allowed)
        k = min(k, count)
        if k < 1:
            return []
        shortlist = self._by_faiss if self.backend == "faiss" else self._by_numpy
        places = shortlist(query, k, count, allowed)
        return best(exact_scores(self.vectors[places], query), places, k)

    def _by_numpy(self, query: Vectors, k: int, count: int, allowed: Places | None) -> Places:
        scores = self.vectors @ query
        if allowed is not None:
            scores = scores[allowed]
        last = numpy.partition(scores, count - k)[count - k]
        places = numpy.flatnonzero(scores >= last - self._tolerance)
        return places if allowed is None else allowed[places]

    def _by_faiss(self, query: Vectors, k: int, count: int, allowed: Places | None) -> Places:
        """Deepen the shortlist until its last score is certainly below the k-th."""
        import faiss

        parameters: Any = faiss.SearchParameters
        chosen = None if allowed is None else parameters(sel=faiss.IDSelectorBatch(allowed))
        depth = min(count, k + 16)
        while True:
            scores, places = self._faiss.search(query[None], depth, params=chosen)
            near = scores[0] >= scores[0, k - 1] - self._tolerance
            if depth == count or not near[-1]:
                shortlist: Places = numpy.sort(places[0][near])
                return shortlist
            depth = min(count, 4 * depth)

    @cached_property
    def _faiss(self) -> Any:
        import faiss

        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors)
        return index

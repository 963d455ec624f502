"""The embedder protocol, and the store that embeds each text once. No torch."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy
from numpy.typing import NDArray

from memfactory.errors import EngineError

Vectors = NDArray[numpy.float32]


CACHE_BYTES = 256 * 2**20


class Embedder(Protocol):
    """Texts to vectors: float32 [n, d], of any length. Raises EngineError if it fails."""

    @property
    def identity(self) -> str:
        """A name of all settings and weights: embedders of equal identity give equal vectors."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of stored texts."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries."""
        ...


def identity_of(**parts: object) -> str:
    """One line that differs if any of `parts` does."""
    return json.dumps(parts, sort_keys=True)


class VectorStore:
    """Embeds each text once and caches the unit vectors (LRU) up to CACHE_BYTES.

    A blank text is the zero vector and never embedded: endpoints refuse it.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Vectors]) -> None:
        self._embed = embed
        self._cached: OrderedDict[str, Vectors] = OrderedDict()
        self._bytes = 0
        self._evicted = False
        self._dimensions: int | None = None

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """The unit vectors of `texts`: float32 [n, d]. Raises EngineError if the embedder fails or returns NaN."""
        nonblank = [text for text in dict.fromkeys(texts) if text.strip()]
        missing = [text for text in nonblank if text not in self._cached]
        vectors = {text: self._cached[text] for text in nonblank if text in self._cached}
        if missing:
            vectors |= zip(missing, self._embedded(missing), strict=True)
        nothing = numpy.zeros(self._width(), numpy.float32)
        for text in nonblank:
            self._store(text, vectors[text])
        if not texts:
            return numpy.zeros((0, len(nothing)), numpy.float32)
        return numpy.stack([vectors.get(text, nothing) for text in texts])

    def put(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Store unit vectors that this embedder computed before."""
        self._dimensions = vectors.shape[1]
        for text, vector in zip(texts, vectors, strict=True):
            self._store(text, vector)

    def has(self, texts: Sequence[str]) -> bool:
        """Whether the vectors of all `texts` are cached."""
        return all(text in self._cached or not text.strip() for text in texts)

    @property
    def forgetful(self) -> bool:
        """Whether vectors were evicted for lack of space."""
        return self._evicted

    def _embedded(self, texts: Sequence[str]) -> Vectors:
        vectors = self._embed(texts)
        expected = len(texts), self._dimensions or (vectors.shape[-1] if vectors.ndim else 0)
        if vectors.shape != expected or not vectors.size:
            raise EngineError(f"the embedder gave vectors of shape {vectors.shape} where {expected} was expected")
        self._dimensions = vectors.shape[1]
        return unit(vectors)

    def _width(self) -> int:
        """The length of a vector; embeds a text if none was embedded before."""
        return self._dimensions or self._embedded(["a"]).shape[1]

    def _store(self, text: str, vector: Vectors) -> None:
        if text not in self._cached:
            self._cached[text] = vector
            self._bytes += vector.nbytes
        self._cached.move_to_end(text)
        while self._bytes > CACHE_BYTES:
            self._bytes -= self._cached.popitem(last=False)[1].nbytes
            self._evicted = True


def unit(vectors: Vectors) -> Vectors:
    """`vectors` [n, d] scaled to length 1, zero rows left as they are. EngineError for values that are not finite."""
    wide = vectors.astype(numpy.float64)
    if not numpy.isfinite(wide).all():
        raise EngineError("the embedder gave a vector with values that are not finite (NaN or infinity)")
    lengths = numpy.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / numpy.where(lengths > 0, lengths, 1.0)).astype(numpy.float32)

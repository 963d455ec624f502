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


KEPT_BYTES = 256 * 2**20


class Embedder(Protocol):
    """Texts to vectors: float32 [n, d], of any length. Raises EngineError where it cannot."""

    @property
    def identity(self) -> str:
        """Names what decides the vectors: embedders of equal identity give equal ones."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts that are searched."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of what is searched for."""
        ...


def identity_of(**parts: object) -> str:
    """One line that differs where any of `parts` does."""
    return json.dumps(parts, sort_keys=True)


class VectorStore:
    """Embeds each text once and keeps the unit vectors, those used last up to KEPT_BYTES.

    A blank text is the zero vector and never embedded: endpoints refuse it, and it says nothing.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Vectors]) -> None:
        self._embed = embed
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._bytes = 0
        self._let_go = False
        self._dimensions: int | None = None

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """The unit vectors of `texts`: float32 [n, d]. Raises EngineError where the embedder cannot, or gives NaN."""
        said = [text for text in dict.fromkeys(texts) if text.strip()]
        missing = [text for text in said if text not in self._kept]
        found = {text: self._kept[text] for text in said if text in self._kept}
        if missing:
            found |= zip(missing, self._embedded(missing), strict=True)
        nothing = numpy.zeros(self._width(), numpy.float32)
        for text in said:
            self._keep(text, found[text])
        if not texts:
            return numpy.zeros((0, len(nothing)), numpy.float32)
        return numpy.stack([found.get(text, nothing) for text in texts])

    def put(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Take in unit vectors that this embedder gave before."""
        self._dimensions = vectors.shape[1]
        for text, vector in zip(texts, vectors, strict=True):
            self._keep(text, vector)

    def has(self, texts: Sequence[str]) -> bool:
        """Whether all of `texts` can be told without embedding any."""
        return all(text in self._kept or not text.strip() for text in texts)

    @property
    def forgetful(self) -> bool:
        """Whether vectors were let go because no more are held."""
        return self._let_go

    def _embedded(self, texts: Sequence[str]) -> Vectors:
        vectors = self._embed(texts)
        expected = len(texts), self._dimensions or (vectors.shape[-1] if vectors.ndim else 0)
        if vectors.shape != expected or not vectors.size:
            raise EngineError(f"the embedder gave vectors of shape {vectors.shape} where {expected} was expected")
        self._dimensions = vectors.shape[1]
        return unit(vectors)

    def _width(self) -> int:
        """The length of a vector, which only embedding something tells."""
        if self._dimensions is None:
            self._embedded(["a"])
        assert self._dimensions is not None
        return self._dimensions

    def _keep(self, text: str, vector: Vectors) -> None:
        if text not in self._kept:
            self._kept[text] = vector
            self._bytes += vector.nbytes
        self._kept.move_to_end(text)
        while self._bytes > KEPT_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
            self._let_go = True


def unit(vectors: Vectors) -> Vectors:
    """`vectors` [n, d] scaled to length 1, zero rows left as they are. EngineError for values that are not finite."""
    wide = vectors.astype(numpy.float64)
    if not numpy.isfinite(wide).all():
        raise EngineError("the embedder gave a vector with values that are not finite (NaN or infinity)")
    lengths = numpy.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / numpy.where(lengths > 0, lengths, 1.0)).astype(numpy.float32)

"""What turns texts into vectors, by kind, and the store in which a run keeps them. No torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy
from numpy.typing import NDArray

from memfactory.errors import EngineError
from memfactory.memory.options import EmbedderConfig

Vectors = NDArray[numpy.float32]
KEPT_BYTES = 256 * 2**20


class Embedder(Protocol):
    """Texts to vectors: float32 [n, d], not necessarily normalised. Raises EngineError where it cannot."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts that are searched."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of what is searched for."""
        ...


def build_embedder(config: EmbedderConfig) -> Embedder:
    """The embedder that `config` describes; its libraries are imported only now."""
    from memfactory.memory.lexical_embedder import LexicalEmbedder

    if config.kind == "lexical":
        return LexicalEmbedder(config)
    raise NotImplementedError(config.kind)


class VectorStore:
    """Embeds each text once and keeps the unit vectors, those used last up to KEPT_BYTES."""

    def __init__(self, embed: Callable[[Sequence[str]], Vectors]) -> None:
        self._embed = embed
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._bytes = 0

    def vectors(self, texts: Sequence[str]) -> list[Vectors]:
        """The unit vector of each of `texts` (the zero vector stays zero); EngineError for one that is not finite."""
        wanted = dict.fromkeys(texts)
        missing = [text for text in wanted if text not in self._kept]
        found = {text: self._kept[text] for text in wanted if text in self._kept}
        if missing:
            found |= zip(missing, unit(self._embed(missing)), strict=True)
        for text in wanted:
            self._keep(text, found[text])
        return [found[text] for text in texts]

    def _keep(self, text: str, vector: Vectors) -> None:
        if text not in self._kept:
            self._bytes += vector.nbytes
            self._kept[text] = vector
        self._kept.move_to_end(text)
        while self._bytes > KEPT_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def unit(vectors: Vectors) -> Vectors:
    """`vectors` [n, d] scaled to length 1, zero rows left as they are. EngineError for values that are not finite."""
    wide = vectors.astype(numpy.float64)
    if not numpy.isfinite(wide).all():
        raise EngineError("the embedder gave a vector with values that are not finite (NaN or infinity)")
    lengths = numpy.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / numpy.where(lengths > 0, lengths, 1.0)).astype(numpy.float32)

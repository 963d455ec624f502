"""Vectors of hashed words and character n-grams: no model, no network, and the same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from math import log, sqrt

import numpy
from numpy.typing import NDArray

from memfactory.memory.embedder import Vectors, identity_of
from memfactory.memory.options import LexicalEmbedderConfig
from memfactory.memory.words import terms

VERSION = 2
"""Increases whenever equal options give other vectors."""
CACHED_TERMS = 200_000


class LexicalEmbedder:
    """Each of a text's `terms` and each n-gram of `<term>` adds its weight, with a hashed sign, at a hashed place.

    A term counts 1, and its g n-grams `ngram_weight` / sqrt(g) each; one that occurs n times counts 1 + ln n times as
    much. A last number, which questions do not have, makes a text as long as if it had `padding` terms more that no
    question has: without it a text of two words would match by being short. A text without words is the zero vector.
    """

    def __init__(self, config: LexicalEmbedderConfig) -> None:
        self.config = config
        self.identity = identity_of(**config.model_dump(), version=VERSION)
        self._places: dict[str, tuple[NDArray[numpy.int64], NDArray[numpy.float64]]] = {}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimensions], not normalised."""
        vectors = self.embed_queries(texts)
        squared = 1 + (self.config.ngram_weight**2 if self.config.ngrams else 0.0)
        vectors[:, -1] = numpy.where(vectors.any(axis=1), sqrt(self.config.padding * squared), 0.0)
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        vectors = numpy.zeros((len(texts), self.config.dimensions), numpy.float32)
        for row, text in enumerate(texts):
            counts = Counter(terms(text))
            if counts:
                parts = [self._features(term) for term in counts]
                places = numpy.concatenate([place for place, _ in parts])
                weights = numpy.concatenate(
                    [weight * (1 + log(count)) for (_, weight), count in zip(parts, counts.values(), strict=True)]
                )
                vectors[row] = numpy.bincount(places, weights, self.config.dimensions)
        return vectors

    def _features(self, term: str) -> tuple[NDArray[numpy.int64], NDArray[numpy.float64]]:
        """The dimensions that `term` and its n-grams add to, and their weights."""
        if term not in self._places:
            if len(self._places) >= CACHED_TERMS:
                self._places.clear()
            marked = f"<{term}>"
            grams = [
                marked[start : start + length]
                for length in self.config.ngrams
                for start in range(len(marked) - length + 1)
            ]
            weight_each = self.config.ngram_weight / sqrt(len(grams)) if grams else 0.0
            weighted = [("w:" + term, 1.0), *(("n:" + gram, weight_each) for gram in grams)]
            hashes = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") for name, _ in weighted]
            self._places[term] = (
                numpy.array([number % (self.config.dimensions - 1) for number in hashes], numpy.int64),
                numpy.array(
                    [weight if number >> 63 else -weight for number, (_, weight) in zip(hashes, weighted, strict=True)]
                ),
            )
        return self._places[term]

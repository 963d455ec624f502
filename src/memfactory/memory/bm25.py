"""Okapi BM25 (k1 1.5, b 0.75) over texts that do not change and a few that do. Words are `words.terms`.

A word w of the question that n of the N texts hold adds to the score of a text in which it occurs f times
    ln(1 + (N - n + 1/2) / (n + 1/2)) * f (k1 + 1) / (f + k1 (1 - b + b * length / average length)),
once for each time that the question has it. This form of the logarithm (Lucene's) is never negative. A score is the
same whether a text is among those that do not change or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log

import numpy
from numpy.typing import NDArray

from memfactory.memory.words import terms

K1 = 1.5
B = 0.75
Array = NDArray[numpy.float64]
Places = NDArray[numpy.int64]


class Postings:
    """The texts that hold each word, and its count in each."""

    def __init__(self, texts: Sequence[str]) -> None:
        counters = [Counter(terms(text)) for text in texts]
        self.lengths: Array = numpy.array([count.total() for count in counters], numpy.float64)
        postings: dict[str, tuple[list[int], list[int]]] = {}
        for place, count in enumerate(counters):
            for word, times in count.items():
                places, counts = postings.setdefault(word, ([], []))
                places.append(place)
                counts.append(times)
        self.words: dict[str, tuple[Places, Array]] = {
            word: (numpy.array(places, numpy.int64), numpy.array(counts, numpy.float64))
            for word, (places, counts) in postings.items()
        }

    def scores(self, query: str, allowed: NDArray[numpy.bool_] | None, more: Sequence[str]) -> tuple[Array, Array]:
        """The scores of the texts and of `more`; texts that are not `allowed` do not count."""
        further = Postings(more) if more else None
        lengths = self.lengths if allowed is None else self.lengths[allowed]
        texts = len(lengths) + len(more)
        total = float(lengths.sum()) + (float(further.lengths.sum()) if further else 0.0)
        parts = [(self, allowed), (further, None)]
        scores = [numpy.zeros(len(part.lengths) if part else 0) for part, _ in parts]
        for word, times in Counter(terms(query)).items():
            hits = [part.hits(word, mask) if part else None for part, mask in parts]
            holding = sum(len(hit[0]) for hit in hits if hit)
            if not holding:
                continue
            rarity = log(1 + (texts - holding + 0.5) / (holding + 0.5))
            for score, hit, (part, _) in zip(scores, hits, parts, strict=True):
                if hit and part:
                    places, counts = hit
                    relative = part.lengths[places] / (total / texts)
                    score[places] += times * rarity * counts * (K1 + 1) / (counts + K1 * (1 - B + B * relative))
        return scores[0], scores[1]

    def hits(self, word: str, allowed: NDArray[numpy.bool_] | None) -> tuple[Places, Array] | None:
        """The texts that hold `word` and its count in each."""
        postings = self.words.get(word)
        if postings is None or allowed is None:
            return postings
        places, counts = postings
        keep = allowed[places]
        return places[keep], counts[keep]

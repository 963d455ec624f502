"""The provenance of a candidate: the utterances whose words it shares. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from memfactory.memory.words import PROVENANCE_STOP_WORDS, words
from memfactory.types import Candidate, Utterance

Namespaces = Literal["joint", "speaker"]
MOST_SOURCES = 3


def content_words(text: str) -> frozenset[str]:
    """The words of `text` in lower case without stop words."""
    return frozenset(words(text.replace("’", "'"))) - PROVENANCE_STOP_WORDS


def with_provenance(
    candidates: Sequence[Candidate], utterances: Sequence[Utterance], namespaces: Namespaces
) -> tuple[Candidate, ...]:
    """The candidates with sources, time and namespace, taken from the utterances that they come from.

    A candidate comes from the utterances that share the most content words with its key and value; among equals, from
    those whose speaker it names. One that shares no word, or fits more than MOST_SOURCES utterances equally, has no
    sources: a vague candidate never counts as one that kept all evidence. `time` is the last time among its sources and
    `namespace` the first one's speaker, or empty under `joint`; a candidate without sources takes both from all
    utterances.
    """
    words_by_turn = [(content_words(turn.text), content_words(turn.speaker)) for turn in utterances]
    traced = []
    for candidate in candidates:
        own = content_words(f"{candidate.key} {candidate.value}")
        fits = [(len(own & text), len(own & speaker) > 0) for text, speaker in words_by_turn]
        best = max(fits, default=(0, False))
        turns = [turn for turn, fit in zip(utterances, fits, strict=True) if fit == best]
        traced.append(from_turns(candidate, turns if best[0] and len(turns) <= MOST_SOURCES else [], utterances))
    return tuple(traced if namespaces == "speaker" else [replace(candidate, namespace="") for candidate in traced])


def from_turns(candidate: Candidate, turns: Sequence[Utterance], utterances: Sequence[Utterance]) -> Candidate:
    """`candidate` with sources, time and speaker of `turns`; without turns, with time and speaker of `utterances`."""
    around = turns or utterances
    times = [turn.time for turn in around if turn.time]
    return replace(
        candidate,
        sources=tuple(dict.fromkeys(turn.id for turn in turns if turn.id)),
        time=times[-1] if times else None,
        namespace=around[0].speaker if around else "",
    )


def closest(text: str, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate that shares the most content words with `text`, the first of equals; None if none shares any."""
    own = content_words(text)
    shared = [len(own & content_words(f"{candidate.key} {candidate.value}")) for candidate in candidates]
    return candidates[shared.index(max(shared))] if any(shared) else None

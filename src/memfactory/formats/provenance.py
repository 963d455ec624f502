"""Where a memory entry comes from: the utterances whose words it shares. Pure."""

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
    """The candidates with what the utterances they come from say about them.

    An entry comes from the utterances that share the most content words with its key and value, of equals from those
    whose speaker it names. One that shares no word, or fits more than MOST_SOURCES equally well, comes from none in
    particular: it has no sources, so that saying little never counts as having kept everything. `time` is that of the
    newest of them that has one, `namespace` that of the first one's speaker, or empty for a memory of all; an entry
    without sources takes both from all of `utterances`.
    """
    said = [(content_words(turn.text), content_words(turn.speaker)) for turn in utterances]
    found = []
    for candidate in candidates:
        own = content_words(f"{candidate.key} {candidate.value}")
        fits = [(len(own & text), len(own & speaker) > 0) for text, speaker in said]
        best = max(fits, default=(0, False))
        turns = [turn for turn, fit in zip(utterances, fits, strict=True) if fit == best]
        found.append(from_turns(candidate, turns if best[0] and len(turns) <= MOST_SOURCES else [], utterances))
    return tuple(found if namespaces == "speaker" else [replace(candidate, namespace="") for candidate in found])


def from_turns(candidate: Candidate, turns: Sequence[Utterance], heard: Sequence[Utterance]) -> Candidate:
    """`candidate` as said in `turns`, or anywhere in `heard` where there are none: sources, time and speaker."""
    around = turns or heard
    times = [turn.time for turn in around if turn.time]
    return replace(
        candidate,
        sources=tuple(dict.fromkeys(turn.id for turn in turns if turn.id)),
        time=times[-1] if times else None,
        namespace=around[0].speaker if around else "",
    )


def closest(text: str, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate that shares the most content words with `text`, the first of equals; None where none shares any."""
    own = content_words(text)
    shared = [len(own & content_words(f"{candidate.key} {candidate.value}")) for candidate in candidates]
    return candidates[shared.index(max(shared))] if any(shared) else None

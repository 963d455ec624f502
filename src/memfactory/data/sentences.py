"""Sentences of ordinary text: the places at which they end, and the sentence around a place."""

from __future__ import annotations

import re

_STOP = re.compile(r"[.!?]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
_NO_END = re.compile(
    r"(?:\b(?:[A-Z]|[A-Za-z]\.[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Gov|Sen|Rep|No|Nos|vs"
    r"|c|ca|cf|al|e\.g|i\.e|etc|Fig|Vol|Inc|Ltd|Co|Corp|Bros|approx|Mt|Ft|Jan|Feb|Mar|Apr|Aug|Sept|Sep|Oct|Nov|Dec))$"
)
_LONGEST_WORD = 8
"""No abbreviation is longer."""


def sentence_ends(text: str) -> list[int]:
    """The place behind each sentence of `text` and the spaces that follow it; the last is the length of the text.

    A sentence ends at a full stop, an exclamation mark or a question mark before a capital letter or a digit, but not
    at the full stop of an initial or of a common abbreviation.

    >>> sentence_ends("Dr. Ada left. Why? She was ill.")
    [14, 19, 31]
    """
    ends = []
    for stop in _STOP.finditer(text):
        before = text[max(0, stop.start() - _LONGEST_WORD) : stop.start()]
        if not (text[stop.start()] == "." and _NO_END.search(before)):
            ends.append(stop.end())
    return ends if ends and ends[-1] == len(text) else [*ends, len(text)]


def sentence_around(text: str, begin: int, end: int) -> str:
    """The sentence of `text` that holds `text[begin:end]`, or the consecutive sentences over which that extends.

    >>> sentence_around("Ada left. Why? She was ill.", 15, 18)
    'She was ill.'
    """
    ends = sentence_ends(text)
    first = max((place for place in ends if place <= begin), default=0)
    last = next(place for place in ends if place >= end)
    return text[first:last].strip()

"""The words of a text, their stems, and the stop words of lexical search and of provenance. Pure."""

from __future__ import annotations

import re

from memfactory.text import composed

IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+")
ENDINGS = ("ing", "ed", "es", "s")

_COMMON = frozenset(
    WORD.findall(
        "a an the this that these and or but so if because than then as of at by for from in on to up out off "
        "over with about after before again i me my we us our you your he him his she her it its they them their "
        "am is are was were be been being do does did have has had will would can could what when where which who "
        "why how not no yes also just very too any some all there here s t d m re ve ll don doesn didn couldn"
    )
)
"""Words that any text may have, among them the halves of contractions."""
SEARCH_STOP_WORDS = _COMMON | frozenset(
    WORD.findall(
        "those nor into onto down under without during between through mine hers doing done having shall should "
        "might must whom whose only both each isn wasn aren weren won wouldn shouldn"
    )
)
"""The words that lexical search ignores."""
PROVENANCE_STOP_WORDS = _COMMON | {"get", "got", "more", "now", "one", "said", "says"}
"""The words that link no memory to an utterance, among them those of reported speech.

The two lists differ and stay: the recorded results of search and of provenance depend on them.
"""


def words(text: str) -> list[str]:
    """The words and numbers of `text`, in lower case and composed form; a Chinese or Japanese character is a word."""
    return WORD.findall(composed(text).lower())


def stem(word: str) -> str:
    """`word` without its ending: adopts, adopted and adopting are one. Words of other scripts stay as they are.

    Lighter than Porter's stemmer; search results depend on it.
    """
    if len(word) < 4 or not word.isascii():
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    ending = next((ending for ending in ENDINGS if word.endswith(ending)), "")
    if ending == "s" and word[-2] in "su":
        return word
    if ending and len(word) - len(ending) >= 3:
        word = word[: -len(ending)]
        if word[-1] == word[-2] and word[-1] not in "aeiouls":
            word = word[:-1]
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def terms(text: str) -> list[str]:
    """The search terms of `text`: the stems of its words, without stop words unless there are no other words."""
    all_words = words(text)
    return [stem(word) for word in all_words if word not in SEARCH_STOP_WORDS] or [stem(word) for word in all_words]

"""The words of a text as search by words sees them. Pure."""

from __future__ import annotations

import re

from memfactory.text import composed

IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+")
ENDINGS = ("ing", "ed", "es", "s")

STOP_WORDS = frozenset(
    WORD.findall(
        "a an the this that these those and or but nor so if because than then as of at by for from in into on onto to "
        "up down out off over under with without about after before during between through again "
        "i me my mine we us our you your he him his she her hers it its they them their "
        "am is are was were be been being do does did doing done have has had having will would shall should can could "
        "might must what when where which who whom whose why how not no yes also just only very too any some "
        "all both each there here s t d m re ve ll don doesn didn isn wasn aren weren won wouldn couldn shouldn"
    )
)
"""Words that any text may have, contractions' halves among them."""


def words(text: str) -> list[str]:
    """The words and numbers of `text` in lower case, however its accents are spelt; Chinese and Japanese characters one
    by one."""
    return WORD.findall(composed(text).lower())


def stem(word: str) -> str:
    """`word` without its ending, so that adopts, adopted and adopting are one; words of other scripts as they are."""
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
    """What `text` is found by: the stems of its words, without stop words unless it has no others."""
    said = words(text)
    return [stem(word) for word in said if word not in STOP_WORDS] or [stem(word) for word in said]

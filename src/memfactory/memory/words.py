"""The words of a text as search by words sees them. Pure."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words and numbers of `text` in lower case, without the possessive 's."""
    return [re.sub(r"['’]s$", "", word) for word in WORD.findall(text.lower())]

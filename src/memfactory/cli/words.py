"""The words of a command line: which name something to read, and which are overrides. An existing path always wins."""

from __future__ import annotations

import os
from collections.abc import Sequence

from memfactory.errors import ConfigError


def is_override(word: str) -> bool:
    """Whether `word` is `key=value`: a run may well be called `lr=1e-05`, so what exists as a path is none."""
    return "=" in word and (word.startswith("--") or not os.path.lexists(word))


def sources_and_overrides(words: Sequence[str], what: str) -> tuple[list[str], list[str]]:
    """The words that name something, and the overrides. Raises ConfigError where nothing is named, which would be
    `what`."""
    sources = [word for word in words if not is_override(word)]
    overrides = [word for word in words if is_override(word)]
    if not sources:
        raise ConfigError(
            f"nothing but overrides is given ({' '.join(overrides)}), and no {what}; a path with '=' in it must exist"
        )
    return sources, overrides

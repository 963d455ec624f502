"""The words of a command line: sources and overrides. An existing path is always a source."""

from __future__ import annotations

import os
from collections.abc import Sequence

from memfactory.errors import ConfigError


def is_override(word: str) -> bool:
    """Whether `word` is `key=value`: a run may be called `lr=1e-05`, so an existing path is not an override."""
    return "=" in word and (word.startswith("--") or not os.path.lexists(word))


def sources_and_overrides(words: Sequence[str], kind: str) -> tuple[list[str], list[str]]:
    """The sources and the overrides among `words`. Raises ConfigError if there is no source; `kind` names its kinds."""
    sources = [word for word in words if not is_override(word)]
    overrides = [word for word in words if is_override(word)]
    if not sources:
        raise ConfigError(
            f"nothing but overrides is given ({' '.join(overrides)}), and no {kind}; a path with '=' in it must exist"
        )
    return sources, overrides

"""Places that users name: `~` stands for a home."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(place: str | Path) -> Path:
    """`place` with the home that a `~` or `~user` at its beginning stands for, as a shell expands it.

    A user who does not exist leaves it as it is, so that it is reported as a place that is not there.

    >>> str(expanded("~no-such-user/models"))
    '~no-such-user/models'
    """
    return Path(os.path.expanduser(place))

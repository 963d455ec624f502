"""The package's own data files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def asset(name: str) -> Path:
    """The path of a file or folder among the package's assets; it need not exist."""
    return Path(str(resources.files("memfactory") / "assets" / name))

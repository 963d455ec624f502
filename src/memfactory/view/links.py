"""Paths inside a folder that somebody else may have made: links that lead out of it are not followed."""

from __future__ import annotations

from pathlib import Path


def is_inside(folder: Path, path: Path) -> bool:
    """Whether `path` exists and, with every link followed, lies inside `folder`."""
    return path.exists() and path.resolve().is_relative_to(folder.resolve())


def link_note(name: str) -> str:
    """The note about a link that the page leaves out."""
    return f"{name} is a link out of the folder and is not shown."

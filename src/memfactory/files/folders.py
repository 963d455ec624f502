"""Atomic folders: complete or not there. The marker `COMPLETE` lists the SHA-256 of each file, so damage is found."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from memfactory.errors import MemFactoryError
from memfactory.files.atomic import flush, partial_of, sha256_of

MARKER = "COMPLETE"
FORMAT = 1
# Libraries written in Rust raise errors of their own when the disk refuses a write.
_SYSTEM_ERROR = re.compile(r"os error [0-9]+|Os \{ code")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends; an error leaves nothing of it behind.

    Raises MemFactoryError if the disk refuses (full, read-only).
    """
    partial = partial_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        # safetensors makes files that only their owner reads; a folder is for whom the user's mask says.
        mode = partial.stat().st_mode & 0o666
        for path in _files(partial):
            path.chmod(mode)
            flush(path)
        write_marker(partial)
        flush(partial)
        _remove(target)
        os.rename(partial, target)
        flush(target.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError) or _SYSTEM_ERROR.search(str(error)):
            reason = error.strerror if isinstance(error, OSError) else None
            raise MemFactoryError(f"{target} could not be written: {reason or error}") from error
        raise


def write_marker(folder: Path) -> None:
    """Write the marker of `folder` for its present files."""
    digests = {path.relative_to(folder).as_posix(): sha256_of(path) for path in _files(folder)}
    with open(folder / MARKER, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "sha256": digests}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_marker(folder: Path) -> dict[str, object] | str:
    """The SHA-256 of each file of `folder` by its marker, or a message if the marker gives none."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
    except FileNotFoundError:
        return f"it is not complete (it has no file {MARKER})"
    except (OSError, ValueError, RecursionError):
        return f"its file {MARKER} cannot be read, or is of an earlier version"
    digests = marker.get("sha256") if isinstance(marker, dict) and marker.get("format") == FORMAT else None
    if not isinstance(digests, dict):
        return f"its file {MARKER} is of another version"
    return digests


def damage(folder: Path, *, ignore: Collection[str] = ()) -> str | None:
    """The damage of a folder written by `atomic_folder`, in a few words; None if it is intact.

    Files added later, and those named in `ignore`, are not checked.
    """
    digests = read_marker(folder)
    return digests if isinstance(digests, str) else difference(folder, digests, ignore)


def difference(folder: Path, digests: Mapping[str, object], ignore: Collection[str] = ()) -> str | None:
    """The first file of `folder` that is missing or has another SHA-256 than in `digests`, in words."""
    for name, expected in sorted(digests.items()):
        path = folder / name
        if name in ignore:
            continue
        if not path.is_file():
            return f"its file {name} is gone"
        try:
            if sha256_of(path) != expected:
                return f"its file {name} has changed (its SHA-256 differs)"
        except OSError as error:
            return f"its file {name} cannot be read: {error.strerror or error}"
    return None


def check_folder(folder: Path, *, ignore: Collection[str] = ()) -> None:
    """Raise MemFactoryError if `folder` has a marker and is damaged."""
    if os.path.lexists(folder / MARKER) and (problem := damage(folder, ignore=ignore)):
        raise MemFactoryError(
            f"{folder} is damaged or was changed: {problem}. If you changed it yourself, delete {folder / MARKER}"
        )


def _files(folder: Path) -> list[Path]:
    """The files that the marker lists."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)


def _remove(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)

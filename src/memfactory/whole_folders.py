"""Folders that are complete or not there: written beside their place, flushed, renamed; and whether one still is what
was written, by the SHA-256 of each of its files in the marker `COMPLETE`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

from safetensors import SafetensorError

from memfactory.errors import MemFactoryError
from memfactory.files import flush

MARKER = "COMPLETE"
FORMAT = 1
NOT_FOR_MODELS = ("optimizer.pt",)
"""Large files of a checkpoint that its model does without."""
STATE_FILES = ("state.json", "random.json", "optimizer.pt")
"""What every checkpoint has beside its weights."""
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
MODULES = "modules"
"""The folder for what modules have learnt by themselves; empty where none has learnt anything yet."""
_CHECKPOINT = re.compile(r"step-(0|[1-9][0-9]*)")
# Libraries written in Rust tell of a disk that refuses in errors of their own.
_OF_THE_SYSTEM = re.compile(r"os error [0-9]+|Os \{ code")


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` only once it is complete; an error leaves no trace of it.

    Raises MemFactoryError when the disk refuses (full, read-only).
    """
    working = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()
        yield working
        for path in _files(working):
            flush(path)
        mark(working)
        flush(working)
        _remove(target)
        os.rename(working, target)
        flush(target.parent)
    except BaseException as error:
        shutil.rmtree(working, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError) or _OF_THE_SYSTEM.search(str(error)):
            reason = error.strerror if isinstance(error, OSError) else None
            raise MemFactoryError(f"{target} could not be written: {reason or error}") from error
        raise


def mark(folder: Path) -> None:
    """Write the marker of `folder` as it is now."""
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in _files(folder)}
    with open(folder / MARKER, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "sha256": digests}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path, *, besides: Collection[str] = ()) -> str | None:
    """What is wrong with a folder that `written_whole` wrote, in a few words; None where it is as it was written.

    Files that were added, and those named in `besides`, are not looked at.
    """
    found = _digests(folder)
    return found if isinstance(found, str) else _differing(folder, found, besides)


def checkpoint_damage(folder: Path, *, besides: Collection[str] = ()) -> str | None:
    """As `damage`, of a checkpoint: what each of them has to hold must be among what was written, too."""
    found = _digests(folder)
    if isinstance(found, str):
        return found
    for name in STATE_FILES:
        if name not in found and name not in besides:
            return f"its file {MARKER} does not list {name}"
    if not any(name in found for name in WEIGHT_FILES) and not (folder / MODULES).is_dir():
        return f"its file {MARKER} lists no weights (model.safetensors, adapter_model.safetensors)"
    return _differing(folder, found, besides)


def _digests(folder: Path) -> dict[str, object] | str:
    """The SHA-256 of each file of `folder` by its marker; a text says why it gives none."""
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


def _differing(folder: Path, digests: Mapping[str, object], besides: Collection[str]) -> str | None:
    for name, expected in sorted(digests.items()):
        path = folder / name
        if name in besides:
            continue
        if not path.is_file():
            return f"its file {name} is gone"
        try:
            if _digest(path) != expected:
                return f"its file {name} is not what was written (its SHA-256 differs)"
        except OSError as error:
            return f"its file {name} cannot be read: {error.strerror or error}"
    return None


def check_folder(folder: Path, *, besides: Collection[str] = ()) -> None:
    """Raise MemFactoryError where `folder` was written here and is not what was written."""
    if os.path.lexists(folder / MARKER) and (wrong := damage(folder, besides=besides)):
        raise MemFactoryError(
            f"{folder} is damaged or was changed: {wrong}. Where you changed it yourself, delete {folder / MARKER}"
        )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, by their names alone. Links and other names are somebody else's."""
    found = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)] if folder.is_dir() else []
    real = [path for path in found if path.is_dir() and not path.is_symlink()]
    return sorted(real, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_whole(folder: Path, *, besides: Collection[str] = ()) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in `folder` that is what was written (None: none is), and what is wrong with later ones."""
    wrong: list[str] = []
    for path in reversed(checkpoints(folder)):
        reason = checkpoint_damage(path, besides=besides)
        if reason is None:
            return path, wrong
        wrong.append(f"{path} cannot be used: {reason}")
    return None, wrong


def _files(folder: Path) -> list[Path]:
    """What the marker speaks of."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _remove(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)

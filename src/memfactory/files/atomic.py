"""Atomic files: a reader sees the old content or the new, never a part of it, even if the writer is killed."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import IO

from memfactory.errors import MemFactoryError
from memfactory.redaction import holds_secret, redacted, redacted_tree
from memfactory.terminal import harmless_json

PARTIAL = ".*.partial"
"""Matches the files and folders that a killed writer leaves behind."""


class NotAFolderError(MemFactoryError, FileExistsError):
    """A file has the name of a folder that is to be made. Also an OSError, so that callers handle it as one."""

    def __str__(self) -> str:
        return f"{self.filename} should be a folder to write into, but is a file; move or delete it"


class NotAFileError(MemFactoryError, OSError):
    """A device, a pipe or a socket has the name of a file that is to be written. Also an OSError."""

    def __str__(self) -> str:
        return f"{self.filename} should be a file to write, but is a device, a pipe or a socket; name another file"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends; an error leaves `path` untouched and no partial file.

    The folder is made. A link at `path` is replaced, not followed. Raises NotAFileError for a device or a pipe, which
    root would otherwise replace by a file.

        with atomic_file(Path("report.csv")) as file:
            file.write(b"step,reward\\n")
    """
    _check_regular(path)
    make_folder(path.parent)
    partial = partial_of(path)
    try:
        with named_errors(path):
            with open(partial, "wb", opener=_open_no_link) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; the folder is made."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, with secret values redacted; the folder is made."""
    write_bytes(path, redacted(text).encode())


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` atomically as indented JSON, with secret values redacted; the folder is made."""
    write_bytes(path, (json_text(value, indent=2) + "\n").encode())


def json_text(value: object, indent: int | None = None) -> str:
    """`value` as JSON with secret values redacted and terminal control characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if holds_secret(text):
        text = json.dumps(redacted_tree(value), indent=indent, ensure_ascii=False)
    return harmless_json(text)


def partial_of(path: Path) -> Path:
    """The path beside `path` where its next content is written before it is renamed."""
    return path.with_name(f".{path.name}.partial")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Force a file's content, or a folder's names, onto the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents unless they exist. Raises NotAFolderError if a file has its name."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotAFolderError(error.errno, error.strerror, str(path)) from None


def set_aside(path: Path) -> Path:
    """Rename an unusable file to the first free of `NAME.damaged`, `NAME.damaged-2`, ...; returns the new path."""
    for number in count(1):
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            os.rename(path, aside)
            return aside
    raise AssertionError("count() never ends")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give an OSError raised in the block the file name `path` if it has none (errors of writing have none)."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _check_regular(path: Path) -> None:
    """Raise NotAFileError if `path` is a device, a pipe or a socket, or a link to one."""
    try:
        mode = path.stat().st_mode
    except OSError:
        # Nothing is there, or writing will tell why it cannot be reached.
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotAFileError(errno.EINVAL, "it is a device, a pipe or a socket", str(path))


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)

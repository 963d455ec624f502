"""Folders and files that one process writes at a time. A lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from memfactory.errors import ConfigError, MemFactoryError
from memfactory.redaction import redacted_command

log = logging.getLogger("memfactory")
LOCK = ".lock"
"""The lock file in a folder that is being written; it is no part of the folder's content."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class InUseError(MemFactoryError):
    """Another process writes what this one wants to write."""


@contextmanager
def folder_lock(folder: Path, *, called: str | None = None) -> Iterator[None]:
    """`folder`, which is made where it is not there, is this process's alone to write; messages call it `called`.

    Raises InUseError, naming the holder, where another process (or another part of this one) holds it, ConfigError
    where there can be no such folder. The lock file is gone afterwards; one that a killed process left behind holds
    nothing.
    """
    _make(folder, called or str(folder))
    with _locked(folder / LOCK, called or str(folder)):
        yield


@contextmanager
def file_lock(path: Path, *, called: str | None = None) -> Iterator[None]:
    """As `folder_lock`, for one file; its folder is made. What is no file, such as /dev/stdout, has no lock."""
    if path.exists() and not path.is_file():
        yield
        return
    _make(path.parent, called or str(path))
    with _locked(path.with_name(f".{path.name}.lock"), called or str(path)):
        yield


def new_folder(parent: Path, name: str) -> Path:
    """A folder in `parent` that nobody had before: `name`, or `name-2`, `name-3` and so on where that is taken."""
    _make(parent, str(parent))
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("count() never ends")


def _make(folder: Path, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{what} cannot be written to: {error.strerror or error}") from None


@contextmanager
def _locked(lock: Path, what: str) -> Iterator[None]:
    descriptor = _take(lock, what)
    try:
        yield
    finally:
        # Removed while it is held, so that nobody can hold the removed file and think the place theirs.
        with suppress(OSError):
            if _is_still(lock, descriptor):
                lock.unlink()
        os.close(descriptor)


def _take(lock: Path, what: str) -> int:
    """The descriptor of the lock file, locked."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise MemFactoryError(f"{what} cannot be locked: {lock}: {error.strerror or error}") from None
        try:
            claim(descriptor, what, _holder)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_still(lock, descriptor):
            _sign(descriptor)
            return descriptor
        # The holder before us removed this file between our opening and locking it.
        os.close(descriptor)


def claim(descriptor: int, what: str, holder: Callable[[int], str] = lambda _: "another process") -> None:
    """Lock an open file until it is closed. Raises InUseError where another opening of it is locked already."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = holder(descriptor)
        raise InUseError(f"{what} is being written by {held}. Wait for it, or name another place.") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks (%s); see to it that nothing else writes it", what, error)


def _is_still(lock: Path, descriptor: int) -> bool:
    try:
        there = os.stat(lock, follow_symlinks=False)
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _sign(descriptor: int) -> None:
    """Write who holds the lock, for messages; a disk that is full must not keep anyone from locking."""
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": redacted_command(sys.argv[1:]),
    }
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    """Who wrote the lock file, in words."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

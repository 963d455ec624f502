"""Locks: one process at a time writes a folder or file. A lock ends with its process, however that ends."""

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
"""The lock file in a folder that a process writes; not part of the folder's content."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class InUseError(MemFactoryError):
    """Another process is writing this folder or file."""


@contextmanager
def folder_lock(folder: Path, *, name: str | None = None) -> Iterator[None]:
    """Lock `folder`, made if missing, for this process; messages call it `name` (default: its path).

    Raises InUseError, naming the holder, if another process (or another part of this one) holds it, and ConfigError if
    the folder cannot be made. The lock file is removed afterwards; one left by a killed process locks nothing.
    """
    _make(folder, name or str(folder))
    with _locked(folder / LOCK, name or str(folder)):
        yield


@contextmanager
def file_lock(path: Path, *, name: str | None = None) -> Iterator[None]:
    """As `folder_lock`, for one file; its folder is made. Only regular files have a lock (/dev/stdout has none)."""
    if path.exists() and not path.is_file():
        yield
        return
    _make(path.parent, name or str(path))
    with _locked(path.with_name(f".{path.name}.lock"), name or str(path)):
        yield


def new_folder(parent: Path, name: str) -> Path:
    """Make a new folder in `parent`: `name`, or the first free of `name-2`, `name-3`, ..."""
    _make(parent, str(parent))
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("count() never ends")


def _make(folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{name} cannot be written to: {error.strerror or error}") from None


@contextmanager
def _locked(lock: Path, name: str) -> Iterator[None]:
    descriptor = _take(lock, name)
    try:
        yield
    finally:
        # Removed while locked: otherwise another process could lock the removed file and believe it owns the path.
        with suppress(OSError):
            if _is_still(lock, descriptor):
                lock.unlink()
        os.close(descriptor)


def _take(lock: Path, name: str) -> int:
    """Open and lock the lock file; returns its descriptor."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise MemFactoryError(f"{name} cannot be locked: {lock}: {error.strerror or error}") from None
        try:
            claim(descriptor, name, _holder)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_still(lock, descriptor):
            _sign(descriptor)
            return descriptor
        # The previous holder removed this file between our open and our lock.
        os.close(descriptor)


def claim(descriptor: int, name: str, holder: Callable[[int], str] = lambda _: "another process") -> None:
    """Lock an open file until it is closed. Raises InUseError if another descriptor has it locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = holder(descriptor)
        raise InUseError(f"{name} is being written by {held}. Wait for it, or name another place.") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks (%s); make sure that nothing else writes it", name, error)


def _is_still(lock: Path, descriptor: int) -> bool:
    try:
        there = os.stat(lock, follow_symlinks=False)
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _sign(descriptor: int) -> None:
    """Write this process into the lock file, for messages; a full disk must not prevent locking."""
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
    """The process that wrote the lock file, in words."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

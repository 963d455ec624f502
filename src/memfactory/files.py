"""Files that survive a kill: written whole or not at all, or as JSON lines of which only the last can be cut short."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from itertools import count
from pathlib import Path
from types import TracebackType

from memfactory.errors import DataError, MemFactoryError
from memfactory.locks import claim
from memfactory.redaction import holds_secret, redacted, redacted_tree
from memfactory.terminal import harmless_json


def write_whole(path: Path, text: str) -> None:
    """`text` at `path`, whole or not at all, without the keys that were read; the folder is made."""
    write_bytes(path, redacted(text).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """`content` at `path`, whole or not at all; the folder is made. What is a link there is replaced, not followed."""
    make_folder(path.parent)
    working = path.with_name(f".{path.name}.partial")
    try:
        with named_errors(path):
            with open(working, "wb", opener=_no_link) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(working, path)
    except BaseException:
        with suppress(OSError):
            working.unlink()
        raise


def flush(path: Path) -> None:
    """Have the file, or the names in the folder, at `path` on the disk before anything else happens."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NotAFolderError(MemFactoryError, FileExistsError):
    """A file lies where a folder is to be made; for callers that tell of any OSError it is one."""

    def __str__(self) -> str:
        return f"{self.filename} should be a folder to write into, but is a file; move or delete it"


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there. Raises NotAFolderError where something else is."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotAFolderError(error.errno, error.strerror, str(path)) from None


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON at `path`, whole or not at all."""
    write_bytes(path, (json_text(value, indent=2) + "\n").encode())


def json_line(value: object) -> str:
    """`value` as one line of JSON, newline included."""
    return json_text(value) + "\n"


def json_text(value: object, indent: int | None = None) -> str:
    """`value` as JSON without the keys that were read; what a terminal would obey is written as an escape."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if holds_secret(text):
        text = json.dumps(redacted_tree(value), indent=indent, ensure_ascii=False)
    return harmless_json(text)


def read_json_lines(path: Path, wanted: Collection[int] | None = None) -> Iterator[dict[str, object]]:
    """The objects of a JSON-lines file; a last line without its newline was cut short by a kill and is left out.

    Of the lines, numbered from 1, only those `wanted` are read (None: all). Raises DataError, with the line's number,
    for any other line that is not a JSON object.
    """
    return _without_problems(tried_json_lines(path, wanted))


def _without_problems(values: Iterator[dict[str, object] | str]) -> Iterator[dict[str, object]]:
    for value in values:
        if isinstance(value, str):
            raise DataError(value)
        yield value


def spread_json_lines(path: Path, most: int) -> Iterator[dict[str, object]]:
    """As `read_json_lines`; of more than `most` (2 or more) lines so many, evenly spread from the first to the last."""
    lines = count_lines(path)
    spread = None if lines <= most else {1 + index * (lines - 1) // (most - 1) for index in range(most)}
    return read_json_lines(path, spread)


def count_lines(path: Path) -> int:
    """How many lines of the file are whole."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def tried_json_lines(path: Path, wanted: Collection[int] | None = None) -> Iterator[dict[str, object] | str]:
    """As `read_json_lines`, but of a line that is not a JSON object it gives what is wrong with it, as text.

    Of the lines, numbered from 1, only those `wanted` are looked at (None: all).
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if wanted is not None and number not in wanted:
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"{path} line {number} is not JSON: {error}"
                continue
            if isinstance(value, dict):
                yield value
            else:
                yield f"{path} line {number} should be a JSON object, not {type(value).__name__}"


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be used to a name of its own beside it; where it lies now."""
    for number in count(1):
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            os.rename(path, aside)
            return aside
    raise AssertionError("count() never ends")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """An OSError in here says which file it is about; those of writing (a full disk) do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class JsonLinesWriter:
    """Appends objects to a JSON-lines file, each flushed at once; a last line that was cut short is removed first.

    Raises InUseError where another writer has the file open.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._path = path
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - held open until close()
        try:
            claim(self._file.fileno(), str(path))
            self._file.truncate(_whole_length(path))
        except BaseException:
            self._file.close()
            raise

    def append(self, value: object) -> None:
        """Write one object. Where the disk refuses (OSError), the file is as it was before."""
        rest = memoryview(json_line(value).encode())
        before = os.fstat(self._file.fileno()).st_size
        with named_errors(self._path):
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except BaseException:
                with suppress(OSError):
                    self._file.truncate(before)
                raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _whole_length(path: Path) -> int:
    """How many bytes of the file are whole lines."""
    with open(path, "rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            begin = max(0, position - 65536)
            file.seek(begin)
            newline = file.read(position - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            position = begin
    return 0


def asset(name: str) -> Path:
    """Where a file or folder of the package's assets lies; it need not be there."""
    return Path(str(resources.files("memfactory") / "assets" / name))

"""JSON-lines files that survive a kill: one object per line, of which only the last can be cut short."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from memfactory.errors import DataError
from memfactory.files.atomic import json_text, make_folder, named_errors
from memfactory.files.locks import claim


def json_line(value: object) -> str:
    """`value` as one line of JSON, newline included, with secret values redacted."""
    return json_text(value) + "\n"


def read_json_lines(path: Path, numbers: Collection[int] | None = None) -> Iterator[dict[str, object]]:
    """The objects of a JSON-lines file; a last line without a newline was cut short by a kill and is left out.

    `numbers` selects lines, counted from 1 (None: all). Raises DataError, with the line's number, for any other line
    that is not a JSON object.
    """
    return _raise_problems(json_lines_or_problems(path, numbers))


def _raise_problems(values: Iterator[dict[str, object] | str]) -> Iterator[dict[str, object]]:
    for value in values:
        if isinstance(value, str):
            raise DataError(value)
        yield value


def spread_json_lines(path: Path, most: int) -> Iterator[dict[str, object]]:
    """As `read_json_lines`, but at most `most` (2 or more) lines, evenly spaced from the first to the last."""
    lines = count_lines(path)
    spread = None if lines <= most else {1 + index * (lines - 1) // (most - 1) for index in range(most)}
    return read_json_lines(path, spread)


def count_lines(path: Path) -> int:
    """The number of complete lines in a file."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def json_lines_or_problems(path: Path, numbers: Collection[int] | None = None) -> Iterator[dict[str, object] | str]:
    """As `read_json_lines`, but yields an error message in place of a line that is not a JSON object."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if numbers is not None and number not in numbers:
                continue
            try:
                value = json_object(line, f"{path} line {number}")
            except DataError as error:
                yield str(error)
            else:
                yield value


def json_object(line: bytes, place: str) -> dict[str, object]:
    """The JSON object in `line`. Raises DataError, which begins with `place`, for anything else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{place} should be a JSON object, not {type(value).__name__}")
    return value


class JsonLinesWriter:
    """Appends objects to a JSON-lines file and flushes each at once. Opening it removes a last line cut short.

        with JsonLinesWriter(Path("metrics.jsonl")) as file:
            file.append({"step": 1, "reward": 0.5})

    Raises InUseError if another writer has the file open.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._path = path
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - open until close()
        try:
            claim(self._file.fileno(), str(path))
            self._file.truncate(_complete_length(path))
        except BaseException:
            self._file.close()
            raise

    def append(self, value: object) -> None:
        """Write one object. If the disk refuses it (OSError), the file keeps its previous content."""
        remaining = memoryview(json_line(value).encode())
        before = os.fstat(self._file.fileno()).st_size
        with named_errors(self._path):
            try:
                while remaining:
                    remaining = remaining[self._file.write(remaining) :]
            except BaseException:
                with suppress(OSError):
                    self._file.truncate(before)
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _complete_length(path: Path) -> int:
    """The length in bytes of a file's complete lines."""
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

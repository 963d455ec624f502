"""Rows out of files: a JSON array, JSON lines or parquet, by content. It does not know the meaning of fields."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from memfactory.data.base import Row
from memfactory.data.fields import described
from memfactory.errors import DataError, nearest
from memfactory.files.places import expanded

MAX_DEPTH = 64
"""The most levels of nested lists and objects in a row; Python's own limits are not far above."""
TOO_DEEP = f"nested too deeply: more than {MAX_DEPTH} levels"
PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH = 64
"""Rows decoded at a time; a row may hold a long context."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def find_file(name: str, base_dir: Path) -> Path:
    """The path of the file `name`, looked up in the working directory, then in `base_dir`.

    Raises DataError if there is none, with the nearest name, or if it is a folder, with its content.
    """
    path = expanded(name)
    candidates = list(dict.fromkeys([path, base_dir / path]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    for candidate in candidates:
        if candidate.is_dir():
            raise DataError(f"{name} is a folder, but a file is expected; it holds: {_listing(candidate)}")
    near = next((hint for candidate in candidates if (hint := _neighbour(candidate))), "")
    raise DataError(f"{name}: there is no such file (looked at {', '.join(map(str, candidates))}){near}")


def read_rows(path: Path, name: str, limit: int | None = None) -> list[Row]:
    """The rows of the file at `path`, at most `limit`; messages call the file `name`.

    The content decides on the format: parquet by its first bytes, a JSON array by its bracket, else JSON lines. A line
    or element that is not an object becomes a row with a `problem`. Raises DataError for a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
        if head.startswith(PARQUET_MAGIC):
            return list(islice(_parquet(path, name), limit))
        encoding = _encoding(head)
        if _first_character(path, encoding) == "[":
            return list(islice(_array(path, name, encoding), limit))
        return list(islice(_lines(path, name, encoding), limit))
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    except UnicodeError as error:
        raise DataError(f"{name} is not text in UTF-8: {error}. Expected JSON, JSON lines or parquet") from None


def read_text(path: Path, name: str) -> str:
    """The text of the file at `path`; messages call it `name`. Raises DataError if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{name} is too large for this machine's memory") from None
    return decoded(content, name)


def decoded(content: bytes, name: str) -> str:
    """`content` as text: in the encoding of its byte order mark, which is dropped, else in UTF-8.

    Raises DataError, which calls it `name`, if it is not text.
    """
    try:
        return content.decode(_encoding(content)).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeError as error:
        raise DataError(f"{name} is not text in UTF-8: {error}") from None


def _encoding(head: bytes) -> str:
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")


class _JsonError(Exception):
    """A text that is not JSON, or not readable JSON; the message completes "it is ...".

    `line` and `column` count from 1; None if the error has no place.
    """

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line, self.column = line, column


def _load(text: str) -> Any:
    """The JSON value of `text`. Raises _JsonError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _JsonError(f"not JSON: {error.msg}", error.lineno, error.colno) from None
    except ValueError:
        raise _JsonError("a number of more digits than can be read") from None
    except RecursionError:
        raise _JsonError(TOO_DEEP) from None


def parse_json(text: str, name: str) -> Any:
    """The JSON value of `text`. Raises DataError, which calls it `name`, for anything else and for a value nested
    deeper than MAX_DEPTH."""
    try:
        value = _load(text)
    except _JsonError as error:
        place = "" if error.line is None else f" (line {error.line}, column {error.column})"
        raise DataError(f"{name} is {error}{place}") from None
    if is_deep(value):
        raise DataError(f"{name} is {TOO_DEEP}")
    return value


def is_deep(value: object) -> bool:
    """Whether lists and objects are nested in more than MAX_DEPTH levels."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for element in level:
            if isinstance(element, dict):
                below += element.values()
            elif isinstance(element, (list, tuple)):
                below += element
        if not below:
            return False
        level = below
    return True


def _first_character(path: Path, encoding: str) -> str:
    with open(path, encoding=encoding) as file:
        for line in file:
            if line.strip():
                return line.lstrip()[0]
    return ""


def _array(path: Path, name: str, encoding: str) -> Iterator[Row]:
    try:
        values = _load(path.read_text(encoding=encoding))
    except _JsonError as error:
        place = name if error.line is None else f"{name}:{error.line}:{error.column}"
        raise DataError(f"{place}: {error}") from None
    for number, value in enumerate(values, start=1):
        yield _row(value, f"{name} row {number}")


def _lines(path: Path, name: str, encoding: str) -> Iterator[Row]:
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = _load(line)
            except _JsonError as error:
                if number == 1 and _is_one_value(path, encoding):
                    raise DataError(
                        f"{name} holds one JSON value over several lines; expected an array, or one row per line"
                    ) from None
                column = "" if error.column is None else f" (column {error.column})"
                yield Row({}, f"{name} line {number}", f"{error}{column}")
            else:
                yield _row(value, f"{name} line {number}")


def _is_one_value(path: Path, encoding: str) -> bool:
    try:
        _load(path.read_text(encoding=encoding))
    except _JsonError:
        return False
    return True


def _row(value: object, source: str) -> Row:
    if not isinstance(value, dict):
        return Row({}, source, f"a row should be an object with fields, got {described(value)}")
    return Row({}, source, TOO_DEEP) if is_deep(value) else Row(value, source)


def _parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{name} row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{name} is not readable parquet: {error}") from None


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = nearest(path.name, (other.name for other in path.parent.iterdir() if other.is_file()))
    return f"; did you mean {path.parent / near}?" if near else ""

"""Rows out of files: a JSON array, JSON lines or parquet, whichever a file holds. It does not know what fields mean."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

from memfactory.data.base import Row
from memfactory.errors import DataError, nearest

DEEPEST = 64
"""How many lists and objects may stand in one another: Python's own tools give up not far beyond."""
PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH = 64
"""Rows that are decoded at one time: rows of long contexts are large."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def find_file(given: str, base_dir: Path) -> Path:
    """The file that `given` names, from the working directory first, then from `base_dir`.

    Raises DataError where there is none, with the nearest name, or where it is a folder, with what it holds.
    """
    path = Path(given).expanduser()
    candidates = list(dict.fromkeys([path, base_dir / path]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    for candidate in candidates:
        if candidate.is_dir():
            raise DataError(f"{given} is a folder, but a file is expected; it holds: {_listing(candidate)}")
    near = next((hint for candidate in candidates if (hint := _neighbour(candidate))), "")
    raise DataError(f"{given}: there is no such file (looked at {', '.join(map(str, candidates))}){near}")


def read_rows(path: Path, name: str, limit: int | None = None) -> list[Row]:
    """The rows of the file at `path`, at most `limit`; `name` is what messages call it.

    The content decides, not the name: parquet by its first bytes, a JSON array by its bracket, else JSON lines.
    A line or element that is no object is a row with a `problem`. Raises DataError for a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
        if head.startswith(PARQUET_MAGIC):
            return list(islice(_parquet(path, name), limit))
        encoding = next((found for mark, found in BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")
        if _first_character(path, encoding) == "[":
            return list(islice(_array(path, name, encoding), limit))
        return list(islice(_lines(path, name, encoding), limit))
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    except UnicodeError as error:
        raise DataError(f"{name} is not text in UTF-8: {error}. Expected JSON, JSON lines or parquet") from None


def read_text(path: Path, name: str) -> str:
    """The text of the file at `path`, which messages call `name`. Raises DataError where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{name} is too large for this machine's memory") from None
    return decoded(content, name)


def decoded(content: bytes, name: str) -> str:
    """`content` as text, in UTF-8 whatever the locale is, or by its byte order mark, which is no part of the text.

    Raises DataError, which calls it `name`, where it is none.
    """
    encoding = next((found for mark, found in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeError as error:
        raise DataError(f"{name} is not text in UTF-8: {error}") from None


def parse_json(text: str, name: str) -> Any:
    """The JSON value that `text` is. Raises DataError, which calls it `name`, for anything else, and for a value nested
    deeper than DEEPEST."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError:
        raise DataError(f"{name} holds a number of more digits than can be read") from None
    except RecursionError:
        raise DataError(f"{name} is nested too deeply: more than {DEEPEST} levels") from None
    if is_deep(value):
        raise DataError(f"{name} is nested too deeply: more than {DEEPEST} levels")
    return value


def is_deep(value: object) -> bool:
    """Whether lists and objects stand in one another in more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, (list, tuple)):
                inner += one
        if not inner:
            return False
        level = inner
    return True


def _first_character(path: Path, encoding: str) -> str:
    with open(path, encoding=encoding) as file:
        for line in file:
            if line.strip():
                return line.lstrip()[0]
    return ""


def _array(path: Path, name: str, encoding: str) -> Iterator[Row]:
    text = path.read_text(encoding=encoding)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except ValueError:
        raise DataError(f"{name} holds a number of more digits than can be read") from None
    except RecursionError:
        raise DataError(f"{name} is nested too deeply to be rows") from None
    for number, value in enumerate(values, start=1):
        yield _row(value, f"{name} row {number}")


def _lines(path: Path, name: str, encoding: str) -> Iterator[Row]:
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                if number == 1 and _is_one_value(path, encoding):
                    raise DataError(
                        f"{name} holds one JSON value over several lines; expected an array of rows, or one row a line"
                    ) from None
                yield Row({}, f"{name} line {number}", f"not JSON: {error.msg} (column {error.colno})")
            except ValueError:
                yield Row({}, f"{name} line {number}", "holds a number of more digits than can be read")
            except RecursionError:
                yield Row({}, f"{name} line {number}", "nested too deeply to be a row")
            else:
                yield _row(value, f"{name} line {number}")


def _is_one_value(path: Path, encoding: str) -> bool:
    try:
        json.loads(path.read_text(encoding=encoding))
    except (ValueError, RecursionError):
        return False
    return True


def _row(value: object, source: str) -> Row:
    if not isinstance(value, dict):
        return Row({}, source, f"a row should be an object with fields, got {described(value)}")
    if is_deep(value):
        return Row({}, source, f"nested too deeply to be a row: more than {DEEPEST} levels")
    return Row(value, source)


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


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a number that can be written down: neither a truth value nor infinite nor NaN."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def text_or_number(value: object) -> str | None:
    """A text or a number as text; None for anything else and for what is blank."""
    text = value if isinstance(value, str) else str(value) if is_number(value) else ""
    return text if text.strip() else None


def described(value: Any) -> str:
    """A value of a row in a few words, for messages: "a list of 3", "the number 5"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}{'...' if len(value) > 40 else ''}" if value.strip() else "an empty text"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:8]))}" if value else "an empty object"
    return f"a value of type {type(value).__name__}"


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = nearest(path.name, (other.name for other in path.parent.iterdir() if other.is_file()))
    return f"; did you mean {path.parent / near}?" if near else ""

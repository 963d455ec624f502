"""Files that survive a kill: written whole or not at all, or as JSON lines of which only the last can be cut short."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import TracebackType

from memfactory.errors import DataError
from memfactory.locks import claim
from memfactory.redaction import holds_secret, redacted, redacted_tree
from memfactory.terminal import harmless_json


def write_whole(path: Path, text: str) -> None:
    """`text` at `path`, whole or not at all, without the keys that were read; the folder is made."""
    _put(path, redacted(text))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_name(f".{path.name}.partial")
    with open(working, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(working, path)


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON at `path`, whole or not at all."""
    _put(path, json_text(value, indent=2) + "\n")


def json_line(value: object) -> str:
    """`value` as one line of JSON, newline included."""
    return json_text(value) + "\n"


def json_text(value: object, indent: int | None = None) -> str:
    """`value` as JSON without the keys that were read; what a terminal would obey is written as an escape."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if holds_secret(text):
        text = json.dumps(redacted_tree(value), indent=indent, ensure_ascii=False)
    return harmless_json(text)


def read_json_lines(path: Path) -> Iterator[dict[str, object]]:
    """The objects of a JSON-lines file; a last line without its newline was cut short by a kill and is left out.

    Raises DataError, with the line's number, for any other line that is not a JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(value, dict):
                raise DataError(f"{path} line {number} should be a JSON object, not {type(value).__name__}")
            yield value


class JsonLinesWriter:
    """Appends objects to a JSON-lines file, each flushed at once; a last line that was cut short is removed first.

    Raises InUseError where another writer has the file open.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+")  # noqa: SIM115 - held open until close()
        try:
            claim(self._file.fileno(), str(path))
            self._file.truncate(_whole_length(path))
        except BaseException:
            self._file.close()
            raise

    def append(self, value: object) -> None:
        self._file.write(json_line(value).encode())
        self._file.flush()

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

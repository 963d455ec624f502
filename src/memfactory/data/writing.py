"""Writes generated rows to files, atomically and one row in memory at a time; equal rows give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any, Literal

from memfactory.errors import DataError
from memfactory.files.atomic import atomic_file, sha256_of

Format = Literal["json", "jsonl", "parquet"]
GeneratedRow = Mapping[str, object]
CountTokens = Callable[[str], int]
OnProgress = Callable[[str, int, int], None]
"""Called with (file name, rows written, total rows)."""
PARQUET_BATCH = 64


@dataclass(frozen=True)
class WrittenFile:
    """A file written. `mean_tokens` is the mean length of the rows' texts; None without a token counter."""

    path: Path
    rows: int
    sha256: str
    mean_tokens: float | None = None


@dataclass(frozen=True)
class Report:
    """The files of a generator, and notes about rows that it left out."""

    files: tuple[WrittenFile, ...]
    notes: tuple[str, ...] = ()


def write_rows(
    path: Path,
    rows: Iterable[GeneratedRow],
    total: int,
    *,
    count_tokens: CountTokens | None = None,
    on_progress: OnProgress | None = None,
) -> WrittenFile:
    """Write `rows` (`total` of them) to `path`; the suffix chooses the form: .json, .jsonl or .parquet.

    Raises DataError if the file cannot be written.
    """
    lengths: list[int] = []

    def counted() -> Iterable[GeneratedRow]:
        for done, row in enumerate(rows, start=1):
            if count_tokens is not None:
                lengths.append(count_tokens(str(row["context"])))
            yield row
            if on_progress is not None:
                on_progress(path.name, done, total)

    try:
        with atomic_file(path) as file:
            WRITERS[path.suffix](file, counted())
        digest = sha256_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{path} cannot be written: a text holds half of a surrogate pair ({error.reason})") from error
    return WrittenFile(path, total, digest, fmean(lengths) if lengths else None)


def _write_json(file: IO[bytes], rows: Iterable[GeneratedRow]) -> None:
    separator = b"[\n"
    for row in rows:
        file.write(separator + _encoded(row))
        separator = b",\n"
    file.write(b"\n]\n" if separator == b",\n" else b"[]\n")


def _write_json_lines(file: IO[bytes], rows: Iterable[GeneratedRow]) -> None:
    for row in rows:
        file.write(_encoded(row) + b"\n")


def _write_parquet(file: IO[bytes], rows: Iterable[GeneratedRow]) -> None:
    import pyarrow
    from pyarrow import parquet

    writer: Any = None
    batch: list[GeneratedRow] = []

    def flush() -> None:
        nonlocal writer
        table = pyarrow.Table.from_pylist(batch, schema=writer.schema if writer else None)
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
        batch.clear()

    for row in rows:
        batch.append(row)
        if len(batch) == PARQUET_BATCH:
            flush()
    if batch:
        flush()
    if writer:
        writer.close()


WRITERS: Mapping[str, Callable[[IO[bytes], Iterable[GeneratedRow]], None]] = {
    ".json": _write_json,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def _encoded(row: GeneratedRow) -> bytes:
    text = json.dumps(row, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        place = text[max(0, error.start - 40) : error.start]
        name = next((row[field] for field in ("id", "index") if field in row), "?")
        raise DataError(f"row {name} holds half of a surrogate pair behind {place!r}, which no file can") from None


def as_training_row(row: GeneratedRow, source: str) -> GeneratedRow:
    """A row in the schema of MemAgent's training files: chat prompt, text, reward model and extra information."""
    answers: Sequence[object] = list(row["answers"])  # type: ignore[call-overload]
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": row["input"]}],
        "context": row["context"],
        "ability": "memory",
        "reward_model": {"style": "rule", "ground_truth": answers},
        "extra_info": {"index": row["index"], "question": row["input"], "num_docs": row["num_docs"]},
    }

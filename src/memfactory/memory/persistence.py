"""Banks on disk: a folder whose manifest is replaced last and atomically, so that a kill leaves the old bank or the
new one.

    manifest.json           format, counts, and the name and SHA-256 of each file
    items-<sha>.jsonl       the items, one per line, in order of insertion
    events-<sha>.jsonl      every change: the item after it, or null for a deletion; replayed, they give the items
    vectors-<sha>.npy       float32 [n, d], the items' unit vectors: a cache, computed again if it does not fit

Files are named by their content, so new files lie beside the old ones until the manifest changes.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy

from memfactory.errors import DataError, MemFactoryError
from memfactory.files.atomic import PARTIAL, flush, write_bytes
from memfactory.files.json_lines import json_object
from memfactory.files.locks import file_lock
from memfactory.memory.embedder import Vectors
from memfactory.redaction import holds_secret, redacted_tree
from memfactory.types import Event, MemoryItem

log = logging.getLogger("memfactory")

FORMAT = 1
MANIFEST = "manifest.json"
METRIC = "inner product"


@dataclass(frozen=True)
class Stored:
    """The contents of a folder. `vectors` [n, d] are None if none fit the items and the embedder."""

    items: tuple[MemoryItem, ...]
    events: tuple[Event, ...]
    vectors: Vectors | None


def save_bank(
    folder: Path, items: tuple[MemoryItem, ...], events: tuple[Event, ...], vectors: Vectors | None, embedder: str
) -> None:
    """Write a bank to `folder` in place of the present one. `embedder` is the identity of the embedder of `vectors`.

    Raises MemFactoryError when the disk refuses (full, read-only).
    """
    parts = {
        "items": ("jsonl", _lines(asdict(item) for item in items), len(items)),
        "events": ("jsonl", _lines(_event_record(event) for event in events), len(events)),
    }
    if vectors is not None:
        packed = io.BytesIO()
        numpy.save(packed, vectors.astype("<f4"), allow_pickle=False)
        parts["vectors"] = ("npy", packed.getvalue(), len(vectors))
    manifest: dict[str, object] = {"format": FORMAT, "embedder": embedder, "metric": METRIC}
    manifest["dimensions"] = None if vectors is None else vectors.shape[1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MemFactoryError(f"the memory bank {folder} could not be written: {error.strerror or error}") from error
    # Two writers would delete each other's files.
    with file_lock(folder / MANIFEST, name=f"the memory bank {folder}"):
        _write(folder, parts, manifest)


def _write(folder: Path, parts: Mapping[str, tuple[str, bytes, int]], manifest: dict[str, object]) -> None:
    try:
        for name, (ending, content, count) in parts.items():
            digest = sha256(content).hexdigest()
            file = f"{name}-{digest[:16]}.{ending}"
            write_bytes(folder / file, content)
            manifest[name] = {"file": file, "count": count, "sha256": digest}
        # The files must be on the disk before the manifest that names them is.
        flush(folder)
        write_bytes(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
        flush(folder)
        _sweep(folder, {MANIFEST, *(part["file"] for part in manifest.values() if isinstance(part, dict))})
    except OSError as error:
        raise MemFactoryError(f"the memory bank {folder} could not be written: {error.strerror or error}") from error


def load_bank(folder: Path, embedder: str) -> Stored:
    """The bank in `folder`. Vectors that are damaged or of another embedder are left out, with a warning.

    Raises DataError for a folder without a bank, and for items or events that do not match the manifest.
    """
    manifest = _manifest(folder)
    items = tuple(_item(values, where) for where, values in _records(folder, manifest, "items"))
    events = tuple(_replayed(_records(folder, manifest, "events")))
    state: dict[str, MemoryItem] = {}
    for event in events:
        state.pop(event.id, None) if event.after is None else state.update({event.id: event.after})
    if tuple(state.values()) != items:
        raise DataError(f"{folder}: the items do not match the events; one of the two was changed by hand")
    return Stored(items, events, _vectors(folder, manifest, embedder, len(items)))


def _manifest(folder: Path) -> Mapping[str, object]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder} holds no memory bank: there is no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        number = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise DataError(f"{path}: a memory bank of format {FORMAT} is expected, got {number!r:.60}")
    return manifest


def _content(folder: Path, manifest: Mapping[str, object], name: str) -> tuple[Path, bytes]:
    """The file of a part and its content. Raises DataError if it does not match the manifest."""
    part = manifest.get(name)
    file = part.get("file") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(file, str) or Path(file).name != file:
        raise DataError(f"{folder / MANIFEST} names no file of {name}")
    path = folder / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if sha256(content).hexdigest() != part.get("sha256"):
        raise DataError(f"{path} does not match {MANIFEST} (its SHA-256 differs): it was changed or damaged")
    return path, content


def _records(folder: Path, manifest: Mapping[str, object], name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a part, each after its place in words."""
    path, content = _content(folder, manifest, name)
    for number, line in enumerate(content.splitlines(), start=1):
        where = f"{path} line {number}"
        yield where, json_object(line, where)


def _vectors(folder: Path, manifest: Mapping[str, object], embedder: str, count: int) -> Vectors | None:
    if manifest.get("vectors") is None:
        return None
    if manifest.get("embedder") != embedder or manifest.get("metric") != METRIC:
        log.warning("%s: its vectors are of another embedder (%s); computed again", folder, manifest.get("embedder"))
        return None
    try:
        _, content = _content(folder, manifest, "vectors")
        vectors = numpy.load(io.BytesIO(content), allow_pickle=False)
    except (DataError, ValueError, EOFError) as error:
        log.warning("%s: its vectors cannot be used (%s); computed again", folder, error)
        return None
    if vectors.shape != (count, manifest.get("dimensions")) or vectors.dtype != numpy.dtype("<f4"):
        log.warning("%s: its vectors [%s] do not fit its %d items; computed again", folder, vectors.shape, count)
        return None
    result: Vectors = vectors.astype(numpy.float32)
    return result


def _event_record(event: Event) -> dict[str, object]:
    return {"id": event.id, "item": None if event.after is None else asdict(event.after)}


def _replayed(records: Iterable[tuple[str, dict[str, object]]]) -> Iterator[Event]:
    """Events from their records: the item before an event is the one that the event before left."""
    state: dict[str, MemoryItem] = {}
    for where, values in records:
        id, fields_after = values.get("id"), values.get("item")
        after = None if fields_after is None else _item(fields_after, where)
        if not isinstance(id, str) or (after is None and id not in state) or (after and after.id != id):
            raise DataError(f"{where}: an event of the item {id!r:.60} leads to {fields_after!r:.60}")
        yield Event(state.pop(id, None) if after is None else state.get(id), after)
        if after is not None:
            state[id] = after


def _item(values: Any, where: str) -> MemoryItem:
    """The item with the fields `values`, which must be exactly its fields."""
    checks: dict[str, Callable[[object], bool]] = {
        "tags": _are_texts,
        "sources": _are_texts,
        "created_at": lambda value: value is None or isinstance(value, str),
        "updated_at": lambda value: value is None or isinstance(value, str),
        "version": lambda value: isinstance(value, int) and not isinstance(value, bool),
    }
    names = [field.name for field in fields(MemoryItem)]
    if not isinstance(values, dict) or set(values) != set(names):
        shown = ", ".join(values) if isinstance(values, dict) else repr(values)[:60]
        raise DataError(f"{where}: an item has the fields {', '.join(names)}, got {shown}")
    for name in names:
        if not checks.get(name, lambda value: isinstance(value, str))(values[name]):
            raise DataError(f"{where}: field {name!r} of an item cannot be {values[name]!r:.60}")
    whole: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return MemoryItem(**whole)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _lines(records: Iterable[dict[str, object]]) -> bytes:
    return b"".join(_line(record).encode() + b"\n" for record in records)


def _line(record: dict[str, object]) -> str:
    # In ASCII, so that half of a surrogate pair, which a model may generate, survives.
    line = json.dumps(record)
    return json.dumps(redacted_tree(record)) if holds_secret(line) else line


def _sweep(folder: Path, current: set[str]) -> None:
    """Remove the files of earlier banks. Files of other kinds stay."""
    for pattern in ("items-*.jsonl", "events-*.jsonl", "vectors-*.npy", PARTIAL):
        for path in folder.glob(pattern):
            if path.name not in current:
                path.unlink()

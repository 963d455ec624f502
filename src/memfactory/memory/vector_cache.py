"""A cache of vectors between runs, by embedder and text, in an SQLite file that many processes may share.

Every vector has a checksum; a damaged one counts as missing. A damaged file is replaced by a new one, and a file that
cannot be used (a full or read-only disk) is left alone. The vectors are right in either case.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy

from memfactory.memory.embedder import Embedder, Vectors

log = logging.getLogger("memfactory")

FILE = "vectors.sqlite"
WAIT_SECONDS = 30.0
AT_ONCE = 500
"""Keys in one SQL statement."""


class CachedEmbedder:
    """Embeds with `embedder` only the texts that the file in `folder` lacks."""

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self._embedder = embedder
        self._path = folder / FILE
        self.identity = embedder.identity

    def embed(self, texts: Sequence[str]) -> Vectors:
        return self._looked_up("text", texts, self._embedder.embed)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._looked_up("query", texts, self._embedder.embed_queries)

    def _looked_up(self, role: str, texts: Sequence[str], embed: Callable[[Sequence[str]], Vectors]) -> Vectors:
        keys = {
            text: _hash(self.identity.encode(), role.encode(), text.encode(errors="surrogatepass")) for text in texts
        }
        cached = self._read(keys.values())
        if len({len(vector) for vector in cached.values()}) > 1:
            log.warning("the vector cache %s holds vectors of different lengths; they are computed again", self._path)
            cached = {}
        missing = [text for text, key in keys.items() if key not in cached]
        if missing:
            vectors = embed(missing)
            cached |= {keys[text]: vector for text, vector in zip(missing, vectors, strict=True)}
            self._write(
                {keys[text]: cached[keys[text]] for text in missing if numpy.isfinite(cached[keys[text]]).all()}
            )
        return numpy.stack([cached[keys[text]] for text in texts])

    def _read(self, keys: Iterable[bytes]) -> dict[bytes, Vectors]:
        vectors: dict[bytes, Vectors] = {}
        remaining = list(keys)
        try:
            with self._open() as file:
                for start in range(0, len(remaining), AT_ONCE):
                    part = remaining[start : start + AT_ONCE]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, vector, checksum FROM vectors WHERE key IN ({marks})"
                    for key, vector, checksum in file.execute(query, part):
                        if checksum == _hash(key, vector):
                            vectors[key] = numpy.frombuffer(vector, "<f4").astype(numpy.float32)
        except sqlite3.DatabaseError as error:
            self._failed(error)
            return {}
        return vectors

    def _write(self, vectors: dict[bytes, Vectors]) -> None:
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        try:
            with self._open() as file:
                file.executemany(
                    "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                    [(key, vector, _hash(key, vector)) for key, vector in rows],
                )
        except sqlite3.DatabaseError as error:
            self._failed(error)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file for one transaction, created if missing."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error
        file = sqlite3.connect(self._path, timeout=WAIT_SECONDS)
        try:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, checksum BLOB)")
            with file:
                yield file
        finally:
            file.close()

    def _failed(self, error: sqlite3.DatabaseError) -> None:
        if isinstance(error, sqlite3.OperationalError):
            log.warning("the vector cache %s cannot be used, vectors are computed again: %s", self._path, error)
            return
        log.warning("the vector cache %s is damaged and starts anew: %s", self._path, error)
        self._path.unlink(missing_ok=True)
        for ending in ("-wal", "-shm"):
            self._path.with_name(FILE + ending).unlink(missing_ok=True)


def _hash(*parts: bytes) -> bytes:
    """16 bytes that name `parts`."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()

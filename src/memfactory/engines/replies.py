"""A bounded cache of replies by the digests of their requests, optionally in a file of the run.

It does not know which replies may be cached: greedy ones of an engine with fixed weights.
"""

from __future__ import annotations

import logging
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from json import dumps
from pathlib import Path

from memfactory.errors import MemFactoryError
from memfactory.files.json_lines import JsonLinesWriter, json_lines_or_problems
from memfactory.redaction import holds_secret
from memfactory.types import Message, Reply, Sampling, Stop, Tokens

log = logging.getLogger("memfactory")
MEMORY_BYTES = 64 * 2**20
FILE_BYTES = 256 * 2**20
OVERHEAD = 400
"""Approximate bytes of an entry's objects beside their contents."""
STOPS: Mapping[object, Stop] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True)
class _Packed:
    """A reply in little memory: its ids (and log-probabilities) as arrays."""

    text: str
    stop: Stop
    ids: tuple[array[int], array[int], array[float]] | None

    @classmethod
    def of(cls, reply: Reply) -> _Packed:
        tokens = reply.tokens
        if tokens is None:
            return cls(reply.text, reply.stop, None)
        ids = array("q", tokens.prompt_ids), array("q", tokens.reply_ids), array("d", tokens.logprobs)
        return cls(reply.text, reply.stop, ids)

    @property
    def size(self) -> int:
        """Its approximate number of bytes."""
        return OVERHEAD + 4 * len(self.text) + sum(8 * len(values) for values in self.ids or ())

    def reply(self) -> Reply:
        if self.ids is None:
            return Reply(self.text, self.stop)
        prompt, reply_ids, logprobs = self.ids
        return Reply(self.text, self.stop, Tokens(tuple(prompt), tuple(reply_ids), tuple(logprobs)))


class ReplyStore:
    """Keeps replies within `limit` bytes; the least recently used go first.

    `keep_in` reads the replies of a file and appends new ones to it, up to `file_limit` bytes.
    """

    def __init__(self, limit: int = MEMORY_BYTES, file_limit: int = FILE_BYTES) -> None:
        self.limit, self.file_limit = limit, file_limit
        self.bytes = 0
        self._held: OrderedDict[bytes, _Packed] = OrderedDict()
        self._file: JsonLinesWriter | None = None
        self._file_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, digest: bytes) -> Reply | None:
        """The reply to the request with this digest; None if it is not cached."""
        packed = self._held.get(digest)
        if packed is None:
            return None
        self._held.move_to_end(digest)
        return packed.reply()

    def put(self, digest: bytes, reply: Reply) -> None:
        """Cache a reply."""
        packed = _Packed.of(reply)
        self._hold(digest, packed)
        self._write(digest, packed)

    def keep_in(self, path: Path) -> None:
        """Read the replies of the file at `path`, and append new ones to it. Damaged lines are left out."""
        damaged = 0
        if path.is_file():
            for row in json_lines_or_problems(path):
                try:
                    self._hold(*_read(row))
                except (KeyError, TypeError, ValueError, OverflowError):
                    damaged += 1
        if damaged:
            log.warning("%s: %d cached replies cannot be read and will be requested again", path, damaged)
        try:
            self._file = JsonLinesWriter(path)
            self._file_bytes = path.stat().st_size
        except (OSError, MemFactoryError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _hold(self, digest: bytes, packed: _Packed) -> None:
        before = self._held.pop(digest, None)
        self.bytes += packed.size - (0 if before is None else before.size)
        self._held[digest] = packed
        while self.bytes > self.limit:
            _, oldest = self._held.popitem(last=False)
            self.bytes -= oldest.size

    def _write(self, digest: bytes, packed: _Packed) -> None:
        """Append to the file. A text with a key in it is not written, since redaction would change it."""
        if self._file is None or self._file_bytes + packed.size > self.file_limit or holds_secret(packed.text):
            return
        row: dict[str, object] = {"asked": digest.hex(), "text": packed.text, "stop": packed.stop}
        if packed.ids is not None:
            prompt, reply_ids, logprobs = packed.ids
            row |= {"prompt_ids": list(prompt), "reply_ids": list(reply_ids), "logprobs": list(logprobs)}
        try:
            self._file.append(row)
        except OSError as error:
            self._give_up(error)
            return
        self._file_bytes += packed.size

    def _give_up(self, error: Exception) -> None:
        log.warning("replies are not cached on disk, so a resumed run requests them again: %s", error)
        self.close()


def name_of(engine: str, messages: Sequence[Message], sampling: Sampling) -> bytes:
    """A digest of a request to the engine of that name, without its seed."""
    parameters = [sampling.max_tokens, *sampling.stop, sampling.params.top_p, sampling.params.top_k]
    request = dumps([engine, [[message.role, message.content] for message in messages], parameters])
    return blake2b(request.encode(), digest_size=20).digest()


def _read(row: Mapping[str, object] | str) -> tuple[bytes, _Packed]:
    """An entry as it was written. Raises ValueError, TypeError or KeyError for anything else."""
    if isinstance(row, str):
        raise ValueError(row)
    digest, text = row["asked"], row["text"]
    if not isinstance(digest, str) or not isinstance(text, str):
        raise TypeError("asked and text should be texts")
    ids = None
    if "prompt_ids" in row:
        prompt, reply_ids, logprobs = row["prompt_ids"], row["reply_ids"], row["logprobs"]
        if not (isinstance(prompt, list) and isinstance(reply_ids, list) and isinstance(logprobs, list)):
            raise TypeError("ids should be lists")
        ids = array("q", prompt), array("q", reply_ids), array("d", logprobs)
        Tokens(tuple(ids[0]), tuple(ids[1]), tuple(ids[2]))
    return bytes.fromhex(digest), _Packed(text, STOPS[row["stop"]], ids)

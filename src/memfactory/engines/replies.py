"""Replies that need not be asked for again: by what was asked, within a bound, and perhaps in a file of the run.

It does not know which replies may be kept: those of an engine whose weights stay, drawn greedily.
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
"""About what the objects of one entry take beside their contents."""
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
        """About how many bytes it takes."""
        return OVERHEAD + 4 * len(self.text) + sum(8 * len(one) for one in self.ids or ())

    def reply(self) -> Reply:
        if self.ids is None:
            return Reply(self.text, self.stop)
        prompt, said, logprobs = self.ids
        return Reply(self.text, self.stop, Tokens(tuple(prompt), tuple(said), tuple(logprobs)))


class ReplyStore:
    """Keeps replies within `limit` bytes: those that were not used for the longest time go first.

    With `keep_in` they are also appended to a file, up to `file_limit` bytes, and those that it holds are there again.
    """

    def __init__(self, limit: int = MEMORY_BYTES, file_limit: int = FILE_BYTES) -> None:
        self.limit, self.file_limit = limit, file_limit
        self.bytes = 0
        self._held: OrderedDict[bytes, _Packed] = OrderedDict()
        self._file: JsonLinesWriter | None = None
        self._file_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, asked: bytes) -> Reply | None:
        """The reply to what was asked; None where it is not kept."""
        packed = self._held.get(asked)
        if packed is None:
            return None
        self._held.move_to_end(asked)
        return packed.reply()

    def put(self, asked: bytes, reply: Reply) -> None:
        """Keep a reply."""
        packed = _Packed.of(reply)
        self._hold(asked, packed)
        self._write(asked, packed)

    def keep_in(self, path: Path) -> None:
        """Take up what the file at `path` holds, and keep what comes in it too. A line that is damaged is left out."""
        lost = 0
        if path.is_file():
            for row in json_lines_or_problems(path):
                try:
                    self._hold(*_read(row))
                except (KeyError, TypeError, ValueError, OverflowError):
                    lost += 1
        if lost:
            log.warning("%s: %d kept replies cannot be read and are asked for again", path, lost)
        try:
            self._file = JsonLinesWriter(path)
            self._file_bytes = path.stat().st_size
        except (OSError, MemFactoryError) as error:
            self._give_up(error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _hold(self, asked: bytes, packed: _Packed) -> None:
        before = self._held.pop(asked, None)
        self.bytes += packed.size - (0 if before is None else before.size)
        self._held[asked] = packed
        while self.bytes > self.limit:
            _, oldest = self._held.popitem(last=False)
            self.bytes -= oldest.size

    def _write(self, asked: bytes, packed: _Packed) -> None:
        """Append to the file. A text with a key in it is not written: it would come back without it."""
        if self._file is None or self._file_bytes + packed.size > self.file_limit or holds_secret(packed.text):
            return
        row: dict[str, object] = {"asked": asked.hex(), "text": packed.text, "stop": packed.stop}
        if packed.ids is not None:
            prompt, said, logprobs = packed.ids
            row |= {"prompt_ids": list(prompt), "reply_ids": list(said), "logprobs": list(logprobs)}
        try:
            self._file.append(row)
        except OSError as error:
            self._give_up(error)
            return
        self._file_bytes += packed.size

    def _give_up(self, error: Exception) -> None:
        log.warning("replies are not kept on disk, so a resumed run asks for them again: %s", error)
        self.close()


def name_of(engine: str, messages: Sequence[Message], sampling: Sampling) -> bytes:
    """A digest of what is asked of an engine of that name, whatever its seed."""
    drawn = [sampling.max_tokens, *sampling.stop, sampling.params.top_p, sampling.params.top_k]
    asked = dumps([engine, [[message.role, message.content] for message in messages], drawn])
    return blake2b(asked.encode(), digest_size=20).digest()


def _read(row: Mapping[str, object] | str) -> tuple[bytes, _Packed]:
    """An entry as it was written. Raises ValueError, TypeError or KeyError for anything else."""
    if isinstance(row, str):
        raise ValueError(row)
    asked, text = row["asked"], row["text"]
    if not isinstance(asked, str) or not isinstance(text, str):
        raise TypeError("asked and text should be texts")
    ids = None
    if "prompt_ids" in row:
        prompt, said, logprobs = row["prompt_ids"], row["reply_ids"], row["logprobs"]
        if not (isinstance(prompt, list) and isinstance(said, list) and isinstance(logprobs, list)):
            raise TypeError("ids should be lists")
        ids = array("q", prompt), array("q", said), array("d", logprobs)
        Tokens(tuple(ids[0]), tuple(ids[1]), tuple(ids[2]))
    return bytes.fromhex(asked), _Packed(text, STOPS[row["stop"]], ids)

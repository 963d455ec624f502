"""A conversation at the engine, from its prompt to its reply. It knows no model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from memfactory.engines.base import Key, stop_place
from memfactory.engines.hf.sampling import uniforms
from memfactory.model.chat import ChatFormat
from memfactory.types import Reply, Sampling, Stop, Tokens


@dataclass
class Row:
    """A conversation that waits or decodes. `limit` is the most tokens that its reply may have."""

    key: Key
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    uniforms: Iterator[float]
    reply_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def restarted(self) -> Row:
        """The row as it was before its first token, with the same numbers to come."""
        return Row(self.key, self.prompt, self.sampling, self.limit, uniforms(self.sampling.seed))

    def reply(self, chat: ChatFormat) -> Reply | None:
        """The reply if its newest token ended it."""
        stop: Stop = "length"
        end: int | None = None
        if self.reply_ids[-1] in chat.stop_ids or (end := self._stop_string(chat)) is not None:
            stop = "stop"
        elif len(self.reply_ids) < self.limit:
            return None
        text = chat.reply_text(self.prompt, self.reply_ids)[:end]
        return Reply(text, stop, Tokens(self.prompt, tuple(self.reply_ids), tuple(self.logprobs)))

    def _stop_string(self, chat: ChatFormat) -> int | None:
        """The place in the text at which the stop string begins that the newest token completed; None: it did not."""
        stop = self.sampling.stop
        if not stop:
            return None
        # A token spells at least one byte, so this many tokens hold any stop string that the newest one completes.
        recent = self.reply_ids[-max(len(string.encode()) for string in stop) - 8 :]
        if stop_place(chat.decode(recent), stop) is None:
            return None
        return stop_place(chat.reply_text(self.prompt, self.reply_ids), stop)


Waiting = dict[tuple[int, ...], deque[Row]]
"""Conversations that have not begun, by their prompt."""

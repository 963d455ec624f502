"""Conversations as turns to learn: each of the assistant's messages as the template writes it, within a longest length.

It does not know where conversations come from, nor when a step is due.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from memfactory.config.sft import OverlongRow
from memfactory.data.base import Row
from memfactory.data.chat_rows import conversation
from memfactory.errors import ConfigError, DataError
from memfactory.model.chat import ChatFormat
from memfactory.policy.batch import TrainingTurn
from memfactory.types import Message

log = logging.getLogger("memfactory")


@dataclass(frozen=True)
class Longest:
    """The longest conversation in tokens, and `why` it is no longer, for messages."""

    tokens: int
    why: str


@dataclass
class Counts:
    """Counts of conversations `dropped` and `cut` for their length, and the source of the first one whose replies are
    trained otherwise than the template writes a whole conversation (`rewritten`)."""

    dropped: int = 0
    cut: int = 0
    rewritten: str | None = None


@dataclass(frozen=True)
class Encoder:
    """Turns rows into training turns. `overlong` decides on conversations that are longer than `longest`."""

    chat: ChatFormat
    longest: Longest | None = None
    overlong: OverlongRow = "error"
    counts: Counts = field(default_factory=Counts)

    def turns(self, row: Row, number: int) -> list[TrainingTurn]:
        """One turn for each of the assistant's messages, after all that came before it; the end token is learned too.

        Nothing if the conversation is dropped for its length. Raises DataError, which names the row, for one that
        cannot be learned.
        """
        messages = conversation(row)
        try:
            turns = [
                self._turn(row, messages[: index + 1], number)
                for index, message in enumerate(messages)
                if message.role == "assistant"
            ]
        except ConfigError as error:
            raise DataError(f"{row.source}: {error}") from None
        longest = self.longest
        if longest is None or all(turn.length <= longest.tokens for turn in turns):
            return turns
        if self.overlong == "error":
            raise DataError(
                f"{row.source}: the conversation has {max(turn.length for turn in turns)} tokens, but {longest.why}; "
                "train.overlong: drop leaves such conversations out, cut truncates them"
            )
        fitting = [] if self.overlong == "drop" else _cut(turns, longest.tokens)
        if fitting:
            self.counts.cut += 1
        else:
            self.counts.dropped += 1
        return fitting

    def _turn(self, row: Row, messages: Sequence[Message], number: int) -> TrainingTurn:
        """The last of `messages`, the assistant's, as a turn."""
        prompt_ids = self.chat.prompt_ids(messages[:-1])
        reply = self.chat.written_reply(messages)
        if reply is None:
            self.counts.rewritten = self.counts.rewritten or row.source
            reply = self.chat.following_reply(prompt_ids, messages[-1].content)
        return TrainingTurn(
            prompt_ids=prompt_ids,
            reply_ids=reply,
            advantage=1.0,
            trajectory=number,
            prompt=number,
            step="assistant",
        )


def _cut(turns: Sequence[TrainingTurn], tokens: int) -> list[TrainingTurn]:
    """`turns` truncated to `tokens`: the end of a reply is cut off, a turn without room for its reply is left out."""
    rooms = [tokens - len(turn.prompt_ids) for turn in turns]
    return [
        turn if len(turn.reply_ids) <= room else replace(turn, reply_ids=turn.reply_ids[:room], truncated=True)
        for turn, room in zip(turns, rooms, strict=True)
        if room > 0
    ]

"""The baseline `naive_rag`: the memory is the conversation word for word; retrieve from it and answer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

from pydantic import Field

from memfactory.dialogue import Agent, Dialogue, Module
from memfactory.episode import Episode
from memfactory.formats.render import render_conversation, utterances_of
from memfactory.memory.bank import BankSource, MemoryBank
from memfactory.registry import AGENTS, Options
from memfactory.text import token_counter
from memfactory.types import MemoryItem, Utterance


class NaiveRagOptions(Options):
    """Options of `naive_rag`."""

    turns_per_item: int = Field(1, ge=1)
    """Turns of one session that make one memory item."""


@AGENTS.register("naive_rag")
class NaiveRag(Agent[NaiveRagOptions]):
    """Stores every turn of the conversation word for word, retrieves for the question, and answers."""

    keeps_bank = True
    slots: ClassVar[Mapping[str, str]] = {"retriever": "naive_retriever", "answerer": "answer"}

    def __init__(
        self, options: NaiveRagOptions, modules: Mapping[str, Module[Any]], banks: BankSource | None = None
    ) -> None:
        super().__init__(options, modules, banks)
        self._tokens = token_counter(modules["answerer"].codec.offsets)

    def dialogue(self, episode: Episode) -> Dialogue[Any]:
        bank = yield from self.read(episode)
        items = yield from self.modules["retriever"].play(episode, bank)
        yield from self.modules["answerer"].play(episode, items)

    def read(self, episode: Episode) -> Dialogue[MemoryBank]:
        """Store the conversation as memory items, without a model."""
        yield from ()
        task = episode.task
        conversation = utterances_of(task)
        if conversation:
            episode.note_reading(self._tokens(render_conversation(conversation)))
        items = as_items(conversation, self.options.turns_per_item, taken={item.id for item in task.memory})
        bank = episode.bank = self.banks.open((*task.memory, *items))
        return bank


def as_items(
    conversation: Sequence[Utterance], size: int, taken: Collection[str] = frozenset()
) -> Iterator[MemoryItem]:
    """The conversation as memory items of `size` turns each (fewer at a session's end) and the time of the first.

    Their numbers follow those of the ids in `taken`.
    """
    number = max((int(id[4:]) for id in taken if re.fullmatch(r"said\d{1,9}", id)), default=0)
    for _, session in groupby(conversation, key=lambda turn: turn.session):
        turns = list(session)
        for start in range(0, len(turns), size):
            number += 1
            chunk = turns[start : start + size]
            yield MemoryItem(
                id=f"said{number}",
                key="",
                value="\n".join(f"{turn.speaker}: {turn.text}" for turn in chunk),
                kind="said",
                sources=tuple(turn.id for turn in chunk if turn.id),
                created_at=chunk[0].time,
            )

"""What agents with a memory bank share: read the conversation into the bank, retrieve for the question, answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import groupby
from typing import ClassVar, Literal

from pydantic import Field

from memfactory.dialogue import Agent, Dialogue, Shared
from memfactory.episode import Episode
from memfactory.formats.render import bulleted, dated, told
from memfactory.memory.bank import MemoryBank
from memfactory.registry import Options
from memfactory.types import Task, Utterance, frozen

UNASKED = "(none yet: the memory is being built)"
SHOWN_ITEMS = 200


class BankAgentOptions(Options):
    """Options of agents that read a conversation into a memory bank."""

    read: Literal["session", "all", "turns"] = "session"
    """What is read at one time: a session, the whole conversation, or `turns` turns of a session."""
    turns: int = Field(1, ge=1)
    """Turns read at one time under `read: turns`."""

    def without_effect(self) -> Mapping[str, str]:
        return {} if self.read == "turns" else {"turns": f"read is {self.read}"}


class BankAgent(Agent):
    """Reads part after part of the conversation into the memory it was given, then retrieves, then answers.

    For each part the extractor finds what is worth remembering and the updater decides what becomes of it; a row with
    one session is a single decision, a whole dialogue a replay with one reward at its end. What is frozen is played
    once for all that need it: the whole reading where both modules are (the questions of one conversation then have
    one bank between them), else what a frozen extractor finds in a part (a group that trains its updater).
    """

    Options: ClassVar[type[BankAgentOptions]] = BankAgentOptions
    options: BankAgentOptions
    keeps_bank = True

    def dialogue(self, episode: Episode) -> Dialogue:
        task = episode.task
        conversation = told(task)
        if conversation and self._is_frozen(episode, "extractor", "updater"):
            key = _digest("bank", conversation, task.memory, task.related)
            built = yield Shared(key, _unasked(replace(task, conversation=conversation), key), self.read)
            assert isinstance(built, Episode) and built.bank is not None
            episode.bank, episode.memory = built.bank.fork(), built.memory
            _take_notes(episode, built)
        else:
            yield from self.read(episode)
        yield from self.modules["retriever"].play(episode)
        yield from self.modules["answerer"].play(episode)

    def read(self, episode: Episode) -> Dialogue:
        """Read the conversation into the bank."""
        episode.bank = self.banks.open(episode.task.memory)
        episode.memory = _listed(episode.bank)
        for part in self.parts(told(episode.task)):
            episode.heard = part
            if not episode.frozen and self._is_frozen(episode, "extractor"):
                key = _digest("part", part)
                found = yield Shared(key, _unasked(replace(episode.task, conversation=part), key), self._extract)
                assert isinstance(found, Episode)
                episode.candidates = found.candidates
                _take_notes(episode, found)
            else:
                yield from self.modules["extractor"].play(episode)
            yield from self.modules["updater"].play(episode)
            episode.memory = _listed(episode.bank)

    def _extract(self, episode: Episode) -> Dialogue:
        episode.bank = self.banks.open(episode.task.memory)
        episode.heard = episode.task.conversation
        yield from self.modules["extractor"].play(episode)

    def parts(self, conversation: Sequence[Utterance]) -> Iterator[tuple[Utterance, ...]]:
        """What is read at one time. Only under `read: all` does a part hold turns of several sessions."""
        if self.options.read == "all" and conversation:
            yield tuple(conversation)
            return
        for _, turns in groupby(conversation, key=lambda turn: turn.session):
            session = tuple(turns)
            size = self.options.turns if self.options.read == "turns" else len(session)
            yield from (session[start : start + size] for start in range(0, len(session), size))

    def _is_frozen(self, episode: Episode, *slots: str) -> bool:
        return episode.frozen or all(self.modules[slot].options.interface == "inference" for slot in slots)


def _listed(bank: MemoryBank) -> str:
    """The bank as a text to look at: its first SHOWN_ITEMS items, one a line, and how many more there are."""
    lines = [dated(item) for item in bank.list()]
    more = len(lines) - SHOWN_ITEMS
    return bulleted([*lines[:SHOWN_ITEMS], *([f"({more} more)"] if more > 0 else [])])


def _unasked(task: Task, name: str) -> Task:
    """The task as it is known before its question, so that what is built serves every question alike."""
    return replace(task, id=name, question=UNASKED, answers=(), context="", evidence=(), messages=(), meta=frozen())


def _take_notes(episode: Episode, other: Episode) -> None:
    """What was read in shared work, and what its replies were marked, counts for each who shares it."""
    if other.reading is not None:
        episode.note_reading(other.reading.read, other.reading.dropped)
    for step, marks in other.checks.items():
        for mark in marks:
            episode.check(step, mark)


def _digest(what: str, *values: object) -> str:
    return f"{what}-{blake2b(repr(values).encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()}"

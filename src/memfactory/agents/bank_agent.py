"""The base of agents with a memory bank: read the conversation into the bank, retrieve for the question, answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import groupby
from typing import Any, Literal

from pydantic import Field

from memfactory.dialogue import Agent, Dialogue, Shared
from memfactory.episode import Episode
from memfactory.formats.render import bullet_list, render_item, utterances_of
from memfactory.memory.bank import MemoryBank
from memfactory.registry import Options
from memfactory.types import Candidate, Task, Utterance, frozen

UNASKED = "(none yet: the memory is being built)"
SHOWN_ITEMS = 200


class BankAgentOptions(Options):
    """Options of agents that read a conversation into a memory bank."""

    read: Literal["session", "all", "turns"] = "session"
    """One chunk of the conversation: a session, the whole conversation (all), or `turns` turns of a session."""
    turns: int = Field(1, ge=1)
    """Turns of one chunk under `read: turns`."""

    def without_effect(self) -> Mapping[str, str]:
        return {} if self.read == "turns" else {"turns": f"read is {self.read}"}


class BankAgent(Agent[BankAgentOptions]):
    """Reads the conversation chunk by chunk into the task's memory, retrieves for the question, and answers.

    The extractor finds candidates in each chunk and the updater applies them to the bank. With one session a row is a
    single decision; with a whole dialogue the reward comes after the last session.

    Frozen work is played once for all episodes that need it. If extractor and updater are frozen, that is the whole
    bank, which all questions of a conversation share. If only the extractor is frozen, it is the candidates, which the
    group that trains the updater shares.
    """

    keeps_bank = True

    def dialogue(self, episode: Episode) -> Dialogue[Any]:
        task = episode.task
        conversation = utterances_of(task)
        if conversation and self._is_frozen(episode, "extractor", "updater"):
            key = _digest("bank", conversation, task.memory, task.related)
            built: MemoryBank = yield Shared(
                key, _without_question(replace(task, conversation=conversation), key), self.read
            )
            bank = built.fork()
            episode.bank, episode.memory = bank, _shown(bank)
        else:
            bank = yield from self.read(episode)
        items = yield from self.modules["retriever"].play(episode, bank)
        yield from self.modules["answerer"].play(episode, items)

    def read(self, episode: Episode) -> Dialogue[MemoryBank]:
        """Read the conversation into a memory bank, chunk by chunk."""
        bank = episode.bank = self.banks.open(episode.task.memory)
        episode.memory = _shown(bank)
        for chunk in self.chunks(utterances_of(episode.task)):
            candidates = yield from self._candidates(episode, chunk)
            yield from self.modules["updater"].play(episode, bank, candidates)
            episode.memory = _shown(bank)
        return bank

    def _candidates(self, episode: Episode, chunk: tuple[Utterance, ...]) -> Dialogue[tuple[Candidate, ...]]:
        """The candidates of one chunk; a group that trains only its updater extracts them once."""
        if episode.frozen or not self._is_frozen(episode, "extractor"):
            return (yield from self.modules["extractor"].play(episode, chunk))
        key = _digest("part", chunk)
        shared: tuple[Candidate, ...] = yield Shared(
            key, _without_question(replace(episode.task, conversation=chunk), key), self._extract
        )
        return shared

    def _extract(self, episode: Episode) -> Dialogue[tuple[Candidate, ...]]:
        episode.bank = self.banks.open(episode.task.memory)
        return (yield from self.modules["extractor"].play(episode, episode.task.conversation))

    def chunks(self, conversation: Sequence[Utterance]) -> Iterator[tuple[Utterance, ...]]:
        """The conversation in the chunks that `read` names. Only `read: all` puts several sessions into one chunk."""
        if self.options.read == "all" and conversation:
            yield tuple(conversation)
            return
        for _, turns in groupby(conversation, key=lambda turn: turn.session):
            session = tuple(turns)
            size = self.options.turns if self.options.read == "turns" else len(session)
            yield from (session[start : start + size] for start in range(0, len(session), size))

    def _is_frozen(self, episode: Episode, *slots: str) -> bool:
        return episode.frozen or all(self.modules[slot].options.interface == "inference" for slot in slots)


def _shown(bank: MemoryBank) -> str:
    """The bank as text for a reader: its first SHOWN_ITEMS items, one per line, and the number of the others."""
    items = bank.list()
    others = [f"({len(items) - SHOWN_ITEMS} more)"] if len(items) > SHOWN_ITEMS else []
    return bullet_list([*map(render_item, items[:SHOWN_ITEMS]), *others])


def _without_question(task: Task, name: str) -> Task:
    """The task before its question is known, so that one bank serves every question alike."""
    return replace(task, id=name, question=UNASKED, answers=(), context="", evidence=(), messages=(), meta=frozen())


def _digest(name: str, *values: object) -> str:
    return f"{name}-{blake2b(repr(values).encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()}"

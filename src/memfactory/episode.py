"""One attempt at a task while it is being played, and what its turns did to its memory bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from memfactory.memory.bank import MemoryBank
from memfactory.types import (
    AnswerForm,
    BankTrace,
    Candidate,
    Event,
    MemoryItem,
    Reading,
    Reward,
    Selection,
    Task,
    Turn,
    Utterance,
)


@dataclass
class Episode:
    """One attempt at a task while it is being played: the only value here that changes.

    `index` is the episode's number within its group; `frozen` says that nothing of the attempt is trained on.
    `answer` is the answer alone; `answer_text` is the reply that it was taken from (None: it was the answer), and
    `answer_form` the form that was asked for (None: the module did not say).
    `memory` is the text memory of recurrent agents, `bank` the memory bank of the others. The modules of the latter
    hand on to each other: the utterances `heard` now, the `candidates` found in them, the items `retrieved` for the
    question (best first), and the ids of those that the answer cites (`citations`; none helped: empty; no or malformed
    citation: None). `checks` holds for each module step how well each of its replies kept to its format, 0 to 1, and
    `failure` why the attempt could not be played to its end (a helper's outage, a refused request): its reward is
    unknown. `overlong`: a prompt did not fit the context, as it will not the next time. `shared` are the episodes of
    work that this one shares with others, such as building the bank; `changed_times` says after each of `turns` how
    often the bank had been changed.
    """

    task: Task
    index: int = 0
    seed: int = 0
    memory: str = ""
    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    step_rewards: dict[str, Reward] = field(default_factory=dict)
    frozen: bool = False
    bank: MemoryBank | None = None
    heard: tuple[Utterance, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    retrieved: tuple[MemoryItem, ...] = ()
    citations: tuple[str, ...] | None = None
    selection: Selection | None = None
    checks: dict[str, list[float]] = field(default_factory=dict)
    failure: str | None = None
    overlong: bool = False
    answer_text: str | None = None
    answer_form: AnswerForm | None = None
    shared: list[Episode] = field(default_factory=list)
    changed_times: list[int] = field(default_factory=list)
    reading: Reading | None = None

    def note_reading(self, read: int, dropped: int = 0) -> None:
        """Note that a module was shown `read` more tokens of the text, and was not shown `dropped` more."""
        before = self.reading or Reading(0)
        self.reading = Reading(before.read + read, before.dropped + dropped)

    def check(self, step: str, value: float) -> None:
        """Note how well a reply of module step `step` kept to its format."""
        self.checks.setdefault(step, []).append(value)


@dataclass(frozen=True)
class TracedTurn:
    """A turn and the changes of the bank that its reply led to. `shared`: other episodes build on it too."""

    turn: Turn
    shared: bool
    changes: tuple[Event, ...]


def traced_turns(episode: Episode) -> list[TracedTurn]:
    """Every turn that the episode's answer rests on, in order: first those of shared work, then its own."""
    return list(_traced(episode, shared=False))


def _traced(episode: Episode, *, shared: bool) -> Iterator[TracedTurn]:
    for part in episode.shared:
        yield from _traced(part, shared=True)
    changes = () if episode.bank is None else episode.bank.changes()
    # A bank that shared work has built was forked from it, changes and all.
    done = max((part.changed_times[-1] for part in episode.shared if part.changed_times), default=0)
    for turn, after in zip(episode.turns, episode.changed_times, strict=True):
        yield TracedTurn(turn, shared, changes[done:after])
        done = max(done, after)


def bank_trace(episode: Episode) -> BankTrace | None:
    """What became of the episode's memory bank; None where it has none."""
    if episode.bank is None:
        return None
    turns = traced_turns(episode)
    others = sum(one.shared for one in turns)
    changes = [
        (None if one.shared else number - others, event)
        for number, one in enumerate(turns, start=1)
        for event in one.changes
    ]
    retrieved = tuple(item.id for item in episode.retrieved)
    return BankTrace(tuple(episode.bank.list()), tuple(changes), retrieved, episode.citations)

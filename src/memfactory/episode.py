"""One trajectory of a task while it is played, and the changes that its turns made to its memory bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from memfactory.memory.bank import MemoryBank
from memfactory.types import (
    AnswerForm,
    BankTrace,
    Event,
    MemoryItem,
    Reading,
    Reward,
    Selection,
    Task,
    Turn,
)


@dataclass
class Episode:
    """One trajectory of a task while it is played: the only value here that changes.

    - `index` is its number within the group; `frozen` says that nothing of it is trained on.
    - `memory` is the text memory of recurrent agents (of other agents: the bank in words), `bank` the memory bank.
    - `answer` is the answer alone, `answer_text` the reply it was taken from (None: `answer` itself), `answer_form` the
      form that the prompt asked for (None: unknown), `citations` the ids of the items that it cites (`ParsedAnswer`).
    - `retrieved` are the items that were retrieved for the question, the best first; `selection` is the sample of a
      retriever that learns from it.
    - `checks` holds for each module step how well each of its replies kept to its format, from 0 to 1.
    - `step_rewards` are the rewards that modules played through `rollout` requested, by module step.
    - `failure` says why the episode did not end (the outage of an engine, a refused request): its reward is unknown.
      `overlong`: a prompt did not fit the context, and would not fit the next time.
    - `shared` are the episodes of the work that this one shares with others, such as building the bank;
      `changed_times` is the number of the bank's changes after each of `turns`.
    - `reading` counts the tokens of the text that were read and dropped; None: the modules do not say.

    >>> Episode(Task("q1", "Where does Anna live?", ("Oslo",))).turns
    []
    """

    task: Task
    index: int = 0
    seed: int = 0
    frozen: bool = False
    turns: list[Turn] = field(default_factory=list)
    memory: str = ""
    bank: MemoryBank | None = None
    answer: str | None = None
    answer_text: str | None = None
    answer_form: AnswerForm | None = None
    citations: tuple[str, ...] | None = None
    retrieved: tuple[MemoryItem, ...] = ()
    selection: Selection | None = None
    checks: dict[str, list[float]] = field(default_factory=dict)
    step_rewards: dict[str, Reward] = field(default_factory=dict)
    failure: str | None = None
    overlong: bool = False
    shared: list[Episode] = field(default_factory=list)
    changed_times: list[int] = field(default_factory=list)
    reading: Reading | None = None

    def note_reading(self, read: int, dropped: int = 0) -> None:
        """Count `read` more tokens of the text as shown to a model, and `dropped` more as left out."""
        before = self.reading or Reading(0)
        self.reading = Reading(before.read + read, before.dropped + dropped)

    def check(self, step: str, form: float) -> None:
        """Note how well a reply of module step `step` kept to its format."""
        self.checks.setdefault(step, []).append(form)

    def share(self, work: Episode) -> None:
        """Take part in shared work: the text it read and the checks of its replies count for this episode too."""
        self.shared.append(work)
        if work.reading is not None:
            self.note_reading(work.reading.read, work.reading.dropped)
        for step, forms in work.checks.items():
            self.checks.setdefault(step, []).extend(forms)


@dataclass(frozen=True)
class TracedTurn:
    """A turn and the changes of the bank that its reply led to. `shared`: other episodes rest on it too."""

    turn: Turn
    shared: bool
    changes: tuple[Event, ...]


def traced_turns(episode: Episode) -> list[TracedTurn]:
    """Every turn that the episode's answer rests on, in order: those of shared work first, then its own."""
    return list(_traced(episode, shared=False))


def _traced(episode: Episode, *, shared: bool) -> Iterator[TracedTurn]:
    for work in episode.shared:
        yield from _traced(work, shared=True)
    changes = () if episode.bank is None else episode.bank.changes()
    # The episode's bank is a fork of the one that shared work built, so it begins with the changes of that work.
    before = max((work.changed_times[-1] for work in episode.shared if work.changed_times), default=0)
    for turn, after in zip(episode.turns, episode.changed_times, strict=True):
        yield TracedTurn(turn, shared, changes[before:after])
        before = max(before, after)


def bank_trace(episode: Episode) -> BankTrace | None:
    """The history of the episode's memory bank; None without a bank."""
    if episode.bank is None:
        return None
    turns = traced_turns(episode)
    others = sum(traced.shared for traced in turns)
    changes = [
        (None if traced.shared else number - others, event)
        for number, traced in enumerate(turns, start=1)
        for event in traced.changes
    ]
    retrieved = tuple(item.id for item in episode.retrieved)
    return BankTrace(tuple(episode.bank.list()), tuple(changes), retrieved, episode.citations)

"""What the turns of an episode did to its memory bank, turn by turn, those of work that it shares included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memfactory.memory.contents import Event
from memfactory.types import Episode, MemoryItem, Turn


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


@dataclass(frozen=True)
class BankTrace:
    """A memory bank after an episode: its items, every change of it with the number of the episode's own turn that led
    to it (None: shared work did), and what was retrieved from it and cited, by id."""

    items: tuple[MemoryItem, ...]
    changes: tuple[tuple[int | None, Event], ...]
    retrieved: tuple[str, ...]
    citations: tuple[str, ...] | None

    def to_json(self, same_as: int | None = None) -> dict[str, object]:
        """As transcripts hold it; of a bank like that of attempt `same_as` only what was retrieved and cited."""
        told: dict[str, object] = {"same_as": same_as}
        if same_as is None:
            told = {
                "items": [item_json(item) for item in self.items],
                "changes": [{"turn": turn, **change_json(event)} for turn, event in self.changes],
            }
        cited = {} if self.citations is None else {"citations": list(self.citations)}
        return {**told, "retrieved": list(self.retrieved), **cited}


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


def item_json(item: MemoryItem) -> dict[str, object]:
    """An item's fields, without those that say nothing."""
    plain = vars(MemoryItem("", "", ""))
    return {name: value for name, value in vars(item).items() if value != plain[name]}


def change_json(event: Event) -> dict[str, object]:
    """A change as records hold it: the operation, the item's id, and the item before and after where it was there."""
    operation = "ADD" if event.before is None else "DELETE" if event.after is None else "UPDATE"
    items = {"before": event.before, "after": event.after}
    return {
        "operation": operation,
        "id": event.id,
        **{name: item_json(item) for name, item in items.items() if item is not None},
    }

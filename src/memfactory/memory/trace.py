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

"""The contents of a memory bank: items in order of insertion and every change, copied on write.

This file does not know how a search works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from memfactory.errors import DataError
from memfactory.types import Event, MemoryItem

FEW_CHANGES = 16


@dataclass(frozen=True, eq=False)
class Base:
    """Immutable contents that all forks share. `items` and `events` are in order."""

    items: tuple[MemoryItem, ...]
    events: tuple[Event, ...]

    @cached_property
    def places(self) -> dict[str, int]:
        """The index in `items` of each id."""
        return {item.id: place for place, item in enumerate(self.items)}

    @cached_property
    def histories(self) -> dict[str, list[Event]]:
        """The events of each id, deleted ones included."""
        histories: dict[str, list[Event]] = {}
        for event in self.events:
            histories.setdefault(event.id, []).append(event)
        return histories


def base_of(items: Iterable[MemoryItem]) -> Base:
    """The contents of a bank that begins with `items`: each enters by an event. DataError if two have the same id."""
    listed = tuple(items)
    base = Base(listed, tuple(Event(None, item) for item in listed))
    if len(base.places) < len(listed):
        twice = next(item.id for place, item in enumerate(listed) if base.places[item.id] != place)
        raise DataError(f"two memory items have the id {twice!r}; ids must differ")
    return base


class Contents:
    """A base and the changes since.

    A fork copies only the changes. Before a fork or a search, changes that outnumber half of the base are merged into a
    new base, so that both cost O(changes), amortised.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.changed: dict[int, MemoryItem | None] = {}
        """The present items at changed places of the base; None: deleted."""
        self.added: dict[str, MemoryItem] = {}
        """The items that are not in the base, in order."""
        self._events: list[Event] = []
        self._number = 0
        """The number of the last new id."""
        self._deleted = 0
        self._opened = len(base.events)

    def __len__(self) -> int:
        return len(self.base.items) - self._deleted + len(self.added)

    def __iter__(self) -> Iterator[MemoryItem]:
        for place, item in enumerate(self.base.items):
            now = self.changed.get(place, item)
            if now is not None:
                yield now
        yield from self.added.values()

    def get(self, id: str) -> MemoryItem | None:
        """The item `id`; None if there is none."""
        if id in self.added:
            return self.added[id]
        place = self.base.places.get(id)
        return None if place is None else self.changed.get(place, self.base.items[place])

    def new_id(self) -> str:
        """The next of "m1", "m2", ... that no item ever had here."""
        while True:
            self._number += 1
            id = f"m{self._number}"
            if id not in self.base.histories:
                return id

    def add(self, item: MemoryItem) -> None:
        """Add `item`; its id must be new."""
        self.added[item.id] = item
        self._events.append(Event(None, item))

    def replace(self, item: MemoryItem) -> None:
        """Put `item` in the place of the item with its id."""
        self._events.append(Event(self.get(item.id), item))
        if item.id in self.added:
            self.added[item.id] = item
        else:
            self.changed[self.base.places[item.id]] = item

    def remove(self, id: str) -> None:
        """Remove the item `id`; its events stay."""
        self._events.append(Event(self.get(id), None))
        if id in self.added:
            del self.added[id]
        else:
            self.changed[self.base.places[id]] = None
            self._deleted += 1

    def events(self) -> tuple[Event, ...]:
        """Every change, in order; replayed, they give the items."""
        return (*self.base.events, *self._events)

    def changes(self) -> tuple[Event, ...]:
        """The changes since the bank was opened; a fork starts with those of its origin."""
        return self.events()[self._opened :]

    @property
    def changed_times(self) -> int:
        """The number of `changes`."""
        return len(self.base.events) + len(self._events) - self._opened

    def history(self, id: str) -> list[Event]:
        """The events of the item `id`, oldest first."""
        return [*self.base.histories.get(id, ()), *(event for event in self._events if event.id == id)]

    def fork(self) -> Contents:
        """A copy that shares the base and no change."""
        self.settle()
        other = Contents(self.base)
        other.changed = dict(self.changed)
        other.added = dict(self.added)
        other._events = list(self._events)
        other._number = self._number
        other._deleted = self._deleted
        other._opened = self._opened
        return other

    def settle(self) -> None:
        """Merge many changes into a new base: its vectors and index then serve every fork."""
        if 2 * len(self._events) < max(FEW_CHANGES, len(self.base.events)):
            return
        self.base = Base(tuple(self), self.events())
        self.changed, self.added, self._events, self._deleted = {}, {}, [], 0

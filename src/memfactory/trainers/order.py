"""The order in which training rows are visited: a new seeded one each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from memfactory.seeds import stream_seed
from memfactory.types import Task


# A step asks for its rows one by one, and at the end of an epoch for those of two.
@lru_cache(maxsize=2)
def epoch_order(count: int, epoch: int, *, seed: int, shuffle: bool) -> tuple[int, ...]:
    """The indices of `count` rows in the order of this epoch."""
    order = list(range(count))
    if shuffle:
        Random(stream_seed(seed, "order", epoch)).shuffle(order)
    return tuple(order)


@dataclass(frozen=True)
class TrainingTasks:
    """Training tasks in the order in which they are visited. A position counts the tasks of all epochs before it."""

    tasks: tuple[Task, ...]
    seed: int = 0
    shuffle: bool = True

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def at(self, position: int) -> Task:
        """The task at `position`."""
        return next(self.upcoming(position, 1))

    def upcoming(self, position: int, count: int) -> Iterator[Task]:
        """The `count` tasks from `position` on."""
        size, end = len(self.tasks), position + count
        for epoch in range(position // size, -(-end // size)):
            order = epoch_order(size, epoch, seed=self.seed, shuffle=self.shuffle)
            for at in range(max(position, epoch * size), min(end, (epoch + 1) * size)):
                yield self.tasks[order[at - epoch * size]]

"""The order in which training data is gone through: a new seeded one each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from memfactory.seeds import stream_seed
from memfactory.types import Task


def epoch_order(count: int, epoch: int, *, seed: int, shuffle: bool) -> list[int]:
    """The places of `count` things in the order of this epoch."""
    order = list(range(count))
    if shuffle:
        Random(stream_seed(seed, "order", epoch)).shuffle(order)
    return order


def upcoming(tasks: Sequence[Task], cursor: int, count: int, *, seed: int, shuffle: bool) -> Iterator[Task]:
    """The next `count` tasks after `cursor`, which counts those of all epochs before."""
    size = len(tasks)
    for epoch in range(cursor // size, -(-(cursor + count) // size)):
        order = epoch_order(size, epoch, seed=seed, shuffle=shuffle)
        for position in range(max(cursor, epoch * size), min(cursor + count, (epoch + 1) * size)):
            yield tasks[order[position - epoch * size]]

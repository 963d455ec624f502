"""A trainer's own part of a plan, and the facts about a run that it is made from, before weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from memfactory.build import TrainingData, training_data
from memfactory.config import Resolved
from memfactory.errors import MemFactoryError
from memfactory.plan.lengths import Lengths, longest_lengths

T = TypeVar("T")
Row = tuple[str, str]


@dataclass(frozen=True)
class Work:
    """The work of a run: optimizer steps (0: unknown), rows of the table, tokens of the longest conversation."""

    steps: int
    rows: tuple[Row, ...] = ()
    longest: int = 0


class Forecast:
    """A run before it begins. `problems` make it impossible; `warnings` do not."""

    def __init__(self, resolved: Resolved) -> None:
        self.resolved = resolved
        self.data: TrainingData = training_data(resolved)
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def tried(self, compute: Callable[[], T]) -> T | None:
        """The result of `compute`; None, and a problem, if it raises an error that the user can fix."""
        try:
            return compute()
        except MemFactoryError as error:
            self.problems.append(str(error))
            return None

    @cached_property
    def lengths(self) -> Lengths | None:
        """Lengths of the conversations of the first training tasks, with the longest replies; None, and a problem, if
        they cannot be played."""
        lengths = self.tried(lambda: longest_lengths(self.resolved, self.data, self.warnings))
        if lengths is None:
            return None
        if lengths.cut is not None:
            self.warnings.append(f"of the first training tasks {lengths.cut}")
        if not lengths.trained:
            self.problems.append("no module is trained: every one has interface: inference")
        return lengths

    def played(self, steps: int, *rows: Row) -> Work:
        """The work of a trainer of the policy that plays the training tasks."""
        if self.lengths is None:
            return Work(steps)
        return Work(steps, (*self.lengths.rows(), *rows), self.lengths.longest)

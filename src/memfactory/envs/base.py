"""What an environment is: it reads rows as tasks and rewards finished episodes. It knows neither modules nor agents.

An environment is one file in this package, or a user's own, with `@ENVS.register("my_env")` above its class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field

from memfactory.data.base import Dataset, Row
from memfactory.envs.rewards.base import RewardFunction
from memfactory.errors import DataError
from memfactory.registry import Options
from memfactory.types import Episode, Reward, Task

__all__ = ["Environment", "EnvironmentOptions", "RewardFunction", "TaskSet", "combine"]

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a dataset, each with an id of its own, and a message for every row that was left out."""

    tasks: tuple[Task, ...]
    skipped: tuple[str, ...] = ()


class EnvironmentOptions(Options):
    """Options every environment has."""

    rewards: dict[str, float | dict[str, object]] = Field(default_factory=dict)
    """Registered rewards by name: a weight, or a mapping of that reward's options, its weight among them."""


class Environment(ABC):
    """Turns rows into tasks and finished episodes into rewards."""

    Options: ClassVar[type[EnvironmentOptions]] = EnvironmentOptions

    def __init__(self, options: Any, rewards: Sequence[RewardFunction]) -> None:
        self.options = options
        self.rewards = tuple(rewards)

    @abstractmethod
    def task(self, row: Row) -> Task:
        """The task of `row`. Raises DataError that names the row's source, the field, what was given and expected."""

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """The registered rewards to report on `tasks` where none are asked for; the first is the headline.

        Unless an environment knows better, they are the rewards that it trains on.
        """
        return tuple(reward.name for reward in self.rewards)

    def tasks(self, dataset: Dataset) -> TaskSet:
        """Every task of `dataset`. An id that occurs again gets a number, so ids name tasks.

        Raises DataError for rows that cannot be used (unless the dataset skips them) and where no task is left.
        """
        rows = dataset.rows()
        tasks: list[Task] = []
        problems: list[str] = []
        for row in rows:
            try:
                if row.problem is not None:
                    raise DataError(f"{row.source}: {row.problem}")
                tasks.append(self.task(row))
            except DataError as error:
                problems.append(str(error))
                if not dataset.options.skip_bad_rows and len(problems) >= SHOWN_PROBLEMS:
                    break
        if problems and not dataset.options.skip_bad_rows:
            raise DataError("\n".join([*problems, "skip_bad_rows: true leaves such rows out."]))
        if not tasks:
            found = (
                f"none of its {len(rows)} rows can be used; the first: {problems[0]}" if problems else "it has no rows"
            )
            raise DataError(f"{dataset.source} gives no task: {found}")
        return TaskSet(_with_own_ids(tasks), tuple(problems))

    def score(self, episodes: Sequence[Episode]) -> list[Reward]:
        """The rewards of `episodes`, in their order: the weighted sum of the parts, each of which is kept."""
        columns = {reward.name: reward.score(episodes) for reward in self.rewards}
        weights = {reward.name: float(reward.options.weight) for reward in self.rewards}
        return [
            combine({name: column[index] for name, column in columns.items()}, weights)
            for index in range(len(episodes))
        ]


def combine(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> Reward:
    """The sum of weight x part. One unknown part makes the total unknown, unless its weight is 0."""
    counted = [(weight, parts[name]) for name, weight in weights.items() if weight != 0]
    total = 0.0
    for weight, part in counted:
        if part is None:
            return Reward(None, MappingProxyType(dict(parts)))
        total += weight * part
    return Reward(total, MappingProxyType(dict(parts)))


def _with_own_ids(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks with a number behind every id that came before: 7, 7#2, 7#3."""
    taken = {task.id for task in tasks}
    counts: Counter[str] = Counter()
    result = []
    for task in tasks:
        counts[task.id] += 1
        number = counts[task.id]
        if number > 1:
            while (new := f"{task.id}#{number}") in taken:
                number += 1
            taken.add(new)
            task = replace(task, id=new)
        result.append(task)
    return tuple(result)

"""What an environment is: it reads rows as tasks and rewards finished episodes. It knows neither modules nor agents.

An environment is one file in this package, or a user's own, with `@ENVS.register("my_env")` above its class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from pydantic import Field, model_validator
from typing_extensions import TypeVar

from memfactory.data.base import Dataset, Row
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.errors import DataError
from memfactory.plugins.boundary import broken, guarded
from memfactory.registry import Component, Options
from memfactory.types import Reward, Task

__all__ = ["Environment", "EnvironmentOptions", "RewardFunction", "TaskSet", "combine"]

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a dataset, each with an id of its own, and a message for every row that was left out.

    `source` is what messages call the dataset, `notes` what else is to be told of it.
    """

    tasks: tuple[Task, ...]
    skipped: tuple[str, ...] = ()
    source: str = "the dataset"
    notes: tuple[str, ...] = ()


class EnvironmentOptions(Options):
    """Options every environment has."""

    rewards: dict[str, float | dict[str, object]] = Field(default_factory=dict)
    """Registered rewards by name: a weight, or a mapping of that reward's options, its weight among them."""
    steps: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Module steps that rewards of their own credit in place of the total: weights of `rewards` by step and name."""

    @model_validator(mode="after")
    def _steps_weigh_rewards(self) -> EnvironmentOptions:
        for step, weights in self.steps.items():
            if not weights:
                raise ValueError(f"steps.{step} names no reward; leave it out, and the total credits the step")
            strange = [name for name in weights if name not in self.rewards]
            if strange:
                raise ValueError(
                    f"steps.{step} weighs {', '.join(strange)}, but `rewards` has {', '.join(self.rewards) or 'none'}; "
                    "a reward of weight 0 there counts in `steps` only"
                )
        return self


EnvironmentT = TypeVar("EnvironmentT", bound=EnvironmentOptions, default=EnvironmentOptions, covariant=True)


class Environment(Component[EnvironmentT], ABC):
    """Turns rows into tasks and finished episodes into rewards."""

    Options: ClassVar[type[EnvironmentOptions]] = EnvironmentOptions

    def __init__(self, options: EnvironmentT, rewards: Sequence[RewardFunction]) -> None:
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

    def reader(self) -> Callable[[Row], Task]:
        """What reads the rows of one dataset, each by `task`; it may keep what the rows have in common."""
        return self.task

    def tasks(self, dataset: Dataset) -> TaskSet:
        """Every task of `dataset`. An id that occurs again gets a number, so ids name tasks.

        Raises DataError for rows that cannot be used (unless the dataset skips them) and where no task is left.
        """
        rows = dataset.checked_rows()
        with guarded(type(self), doing="in reading rows"):
            read = self.reader()
        tasks: list[Task] = []
        problems: list[str] = []
        for row in rows:
            try:
                if row.problem is not None:
                    raise DataError(f"{row.source}: {row.problem}")
                with guarded(type(self), doing=f"in making a task of {row.source}"):
                    task = read(row)
                if not isinstance(task, Task):
                    raise broken(type(self), "task", f"returned {type(task).__name__} for {row.source}, not a Task")
                if (wrong := _wrong(task)) is not None:
                    raise broken(type(self), "task", f"returned for {row.source} a Task {wrong}")
                tasks.append(task)
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
        return TaskSet(_with_own_ids(tasks), tuple(problems), dataset.source)

    def score(self, episodes: Sequence[Episode]) -> list[Reward]:
        """The rewards of `episodes`, in their order: the weighted sum of the parts, each of which is kept.

        An attempt that could not be played to its end is not scored: all of its reward is unknown.
        """
        played = [episode for episode in episodes if episode.failure is None]
        columns = {reward.name: reward.scores(played) for reward in self.rewards} if played else {}
        weights = {reward.name: float(reward.options.weight) for reward in self.rewards}
        steps = self.options.steps
        known = iter(
            combine({name: column[index] for name, column in columns.items()}, weights, steps)
            for index in range(len(played))
        )
        unknown = Reward(None, MappingProxyType(dict.fromkeys(weights)), MappingProxyType(dict.fromkeys(steps)))
        return [next(known) if episode.failure is None else unknown for episode in episodes]


def combine(
    parts: Mapping[str, float | None],
    weights: Mapping[str, float],
    steps: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> Reward:
    """The sum of weight x part, and that of each of `steps` by its own weights.

    One unknown part makes a sum unknown, unless its weight is 0.
    """
    return Reward(
        _weighted(parts, weights),
        MappingProxyType(dict(parts)),
        MappingProxyType({step: _weighted(parts, own) for step, own in steps.items()}),
    )


def _weighted(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    total = 0.0
    for name, weight in weights.items():
        if weight == 0:
            continue
        part = parts[name]
        if part is None:
            return None
        total += weight * part
    return total


def _wrong(task: Task) -> str | None:
    """What is of a wrong type in the fields that every environment fills; None where nothing is."""
    for name in ("id", "question", "context"):
        value: object = getattr(task, name)
        if not isinstance(value, str):
            return f"whose `{name}` is {value!r:.60}, not a text"
    answers: object = task.answers
    if not isinstance(answers, tuple | list) or not all(isinstance(answer, str) for answer in answers):
        return f"whose `answers` are {answers!r:.60}, not a tuple of texts"
    return None


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

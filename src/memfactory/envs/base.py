"""The base class of environments: they turn rows into tasks and reward finished episodes.

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
from memfactory.envs.rewards.base import RewardFunction, scores_by_name
from memfactory.episode import Episode
from memfactory.errors import DataError
from memfactory.plugins.boundary import broken, guarded
from memfactory.registry import Component, Options
from memfactory.types import Reward, Task

__all__ = ["Environment", "EnvironmentOptions", "RewardFunction", "TaskSet", "combine"]

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class TaskSet:
    """The tasks of a dataset, each with an id of its own, and a message for every skipped row.

    `source` names the dataset in messages; `notes` are further remarks about its rows.
    """

    tasks: tuple[Task, ...]
    skipped: tuple[str, ...] = ()
    source: str = "the dataset"
    notes: tuple[str, ...] = ()


class EnvironmentOptions(Options):
    """Options of every environment."""

    rewards: dict[str, float | dict[str, object]] = Field(default_factory=dict)
    """Rewards by registered name: a weight, or a mapping of the reward's options, including its weight."""
    steps: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Reward weights by module step: such a step is credited with this weighted sum instead of the total reward."""

    @model_validator(mode="after")
    def _steps_weigh_rewards(self) -> EnvironmentOptions:
        for step, weights in self.steps.items():
            if not weights:
                raise ValueError(f"steps.{step} names no reward; without the key, the total credits the step")
            unknown = [name for name in weights if name not in self.rewards]
            if unknown:
                raise ValueError(
                    f"steps.{step} weighs {', '.join(unknown)}, but `rewards` has {', '.join(self.rewards) or 'none'}; "
                    "give it the weight 0 there to count it in `steps` only"
                )
        return self


EnvironmentT = TypeVar("EnvironmentT", bound=EnvironmentOptions, default=EnvironmentOptions, covariant=True)


class Environment(Component[EnvironmentT], ABC):
    """Turns rows into tasks and finished episodes into rewards.

    @ENVS.register("trivia")
    class Trivia(Environment):
        def task(self, row: Row) -> Task:
            return Task(row.source, str(row.values["question"]), (str(row.values["answer"]),))

    >>> class Plain(Environment):
    ...     def task(self, row):
    ...         return Task("q1", str(row.values["question"]), (str(row.values["answer"]),))
    >>> env = Plain(EnvironmentOptions(), [])
    >>> env.task(Row({"question": "Where?", "answer": "Oslo"}, "row 1")).answers
    ('Oslo',)
    """

    Options: ClassVar[type[EnvironmentOptions]] = EnvironmentOptions

    def __init__(self, options: EnvironmentT, rewards: Sequence[RewardFunction]) -> None:
        self.options = options
        self.rewards = tuple(rewards)

    @abstractmethod
    def task(self, row: Row) -> Task:
        """The task of `row`. Raises DataError with the row's source, the field, its value and the expected form."""

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """The registered rewards to report on `tasks` if the config names no metrics; the first is the headline.

        By default the rewards that the environment trains on.
        """
        return tuple(reward.name for reward in self.rewards)

    def reader(self) -> Callable[[Row], Task]:
        """A function that reads the rows of one dataset, by default `task`; it may cache values that rows share."""
        return self.task

    def tasks(self, dataset: Dataset) -> TaskSet:
        """All tasks of `dataset`. A repeated id gets a number, so that ids are unique.

        Raises DataError for rows that cannot be used, unless the dataset skips them, and if no task is left.
        """
        rows = dataset.checked_rows()
        with guarded(type(self), doing="in reading rows"):
            read = self.reader()
        tasks: list[Task] = []
        problems: list[str] = []
        for row in rows:
            try:
                row.check()
                with guarded(type(self), doing=f"in making a task of {row.source}"):
                    task = read(row)
                if not isinstance(task, Task):
                    raise broken(type(self), "task", f"returned {type(task).__name__} for {row.source}, not a Task")
                if (problem := _type_problem(task)) is not None:
                    raise broken(type(self), "task", f"returned for {row.source} a Task {problem}")
                tasks.append(task)
            except DataError as error:
                problems.append(str(error))
                if not dataset.options.skip_bad_rows and len(problems) >= SHOWN_PROBLEMS:
                    break
        if problems and not dataset.options.skip_bad_rows:
            raise DataError("\n".join([*problems, "skip_bad_rows: true leaves such rows out."]))
        if not tasks:
            reason = (
                f"none of its {len(rows)} rows can be used; the first: {problems[0]}" if problems else "it has no rows"
            )
            raise DataError(f"{dataset.source} gives no task: {reason}")
        return TaskSet(_with_own_ids(tasks), tuple(problems), dataset.source)

    def score(self, episodes: Sequence[Episode]) -> list[Reward]:
        """The rewards of `episodes`, in their order: the weighted sum of the parts, and the parts.

        An episode that failed is not scored: all parts of its reward are unknown.
        """
        weights = {reward.name: float(reward.options.weight) for reward in self.rewards}
        steps = self.options.steps
        unknown = Reward(None, MappingProxyType(dict.fromkeys(weights)), MappingProxyType(dict.fromkeys(steps)))
        scores = scores_by_name({reward.name: reward for reward in self.rewards}, episodes)
        return [
            combine(parts, weights, steps) if episode.failure is None else unknown
            for episode, parts in zip(episodes, scores, strict=True)
        ]


def combine(
    parts: Mapping[str, float | None],
    weights: Mapping[str, float],
    steps: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> Reward:
    """The sum of weight x part, and such a sum for each of `steps` with its own weights.

    An unknown part makes a sum unknown, unless its weight is 0.
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


def _type_problem(task: Task) -> str | None:
    """The first field of a wrong type among those that every environment fills; None if there is none."""
    for name in ("id", "question", "context"):
        value: object = getattr(task, name)
        if not isinstance(value, str):
            return f"whose `{name}` is {value!r:.60}, not a text"
    answers: object = task.answers
    if not isinstance(answers, tuple | list) or not all(isinstance(answer, str) for answer in answers):
        return f"whose `answers` are {answers!r:.60}, not a tuple of texts"
    return None


def _with_own_ids(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks with a number behind repeated ids: 7, 7#2, 7#3."""
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

"""What an advantage estimator is: from the rewards of one group, how much better each of its trajectories was.

An estimator is one file in this package, or a user's own, with `@ADVANTAGES.register("my_estimator")` above its class.
It is asked once for each group and trained module step, before any tensor exists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from memfactory.config.grpo import GrpoOptions
from memfactory.config.objectives import EstimatorOptions
from memfactory.errors import MemFactoryError
from memfactory.plugins.boundary import as_scalar, guarded, made
from memfactory.registry import ADVANTAGES
from memfactory.types import Group


@dataclass(frozen=True)
class StepRewards:
    """What one module step of one group is credited from.

    `rewards` has one entry for each of the group's trajectories, None where it is unknown. `batch` are the known
    rewards of the step over the whole batch, of all processes. `group` holds the trajectories themselves.
    """

    step: str
    rewards: tuple[float | None, ...]
    batch: tuple[float, ...]
    group: Group


class AdvantageEstimator(ABC):
    """One advantage for each trajectory of a group. `options` are the estimator's own, `training` those of the trainer.

    >>> @ADVANTAGES.register("sign")
    ... class Sign(AdvantageEstimator):
    ...     '''1 above the group's mean, -1 below.'''
    ...
    ...     def advantages(self, given: StepRewards) -> list[float | None]:
    ...         known = [r for r in given.rewards if r is not None]
    ...         mean = sum(known) / max(1, len(known))
    ...         return [None if r is None else float((r > mean) - (r < mean)) for r in given.rewards]

    A step whose advantages are all 0 or None trains nothing; None stays unknown and trains nothing either.
    """

    Options: ClassVar[type[EstimatorOptions]] = EstimatorOptions

    def __init__(self, options: Any, training: GrpoOptions) -> None:
        self.options = options
        self.training = training

    @abstractmethod
    def advantages(self, given: StepRewards) -> list[float | None]:
        """The advantages, in the order of `given.rewards`."""


def make_estimator(options: GrpoOptions) -> AdvantageEstimator:
    """The estimator that `options.advantage` names."""
    name, given = options.named_advantage
    estimator: AdvantageEstimator = made(ADVANTAGES, name, ADVANTAGES.options(name).model_validate(given), options)
    return estimator


def checked_advantages(estimator: AdvantageEstimator, given: StepRewards) -> list[float | None]:
    """What `estimator` gives. Raises MemFactoryError where it is not one finite number or None for each reward."""
    with guarded(type(estimator), doing=f"on the task {given.group.task.id!r}"):
        found = list(estimator.advantages(given))
    name = ADVANTAGES.name_of(type(estimator))
    if len(found) != len(given.rewards):
        raise MemFactoryError(
            f"the advantage estimator {name!r} gave {len(found)} advantages for {len(given.rewards)} trajectories "
            f"(step {given.step!r} of task {given.group.task.id!r})"
        )
    known = []
    for value in found:
        try:
            known.append(as_scalar(value))
        except ValueError as error:
            raise MemFactoryError(
                f"the advantage estimator {name!r} gave {value!r} as an advantage: {error} (step "
                f"{given.step!r} of task {given.group.task.id!r}); expected a finite number, or None where the reward "
                "is unknown"
            ) from None
    return [None if reward is None else value for value, reward in zip(known, given.rewards, strict=True)]


def known_rewards(rewards: Sequence[float | None]) -> list[float]:
    """The rewards that are not unknown."""
    return [reward for reward in rewards if reward is not None]

"""The contract of an advantage estimator: from the rewards of one group, how much better each trajectory was.

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
    """The rewards of one module step of one group.

    `rewards` has one entry for each of the group's trajectories, None if it is unknown. `batch` are the known rewards
    of the step over the whole batch, of all processes. `group` holds the trajectories themselves.
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
    ...     def advantages(self, step: StepRewards) -> list[float | None]:
    ...         known = [r for r in step.rewards if r is not None]
    ...         mean = sum(known) / max(1, len(known))
    ...         return [None if r is None else float((r > mean) - (r < mean)) for r in step.rewards]

    A step whose advantages are all 0 or None trains nothing; None stays unknown and trains nothing either.
    """

    Options: ClassVar[type[EstimatorOptions]] = EstimatorOptions

    def __init__(self, options: Any, training: GrpoOptions) -> None:
        self.options = options
        self.training = training

    @abstractmethod
    def advantages(self, step: StepRewards) -> list[float | None]:
        """The advantages, in the order of `step.rewards`."""


def make_estimator(options: GrpoOptions) -> AdvantageEstimator:
    """The estimator that `options.advantage` names."""
    name, values = options.named_advantage
    estimator: AdvantageEstimator = made(ADVANTAGES, name, ADVANTAGES.options(name).model_validate(values), options)
    return estimator


def checked_advantages(estimator: AdvantageEstimator, step: StepRewards) -> list[float | None]:
    """The advantages by `estimator`. Raises MemFactoryError unless each reward has one finite number, or None."""
    with guarded(type(estimator), doing=f"on the task {step.group.task.id!r}"):
        values = list(estimator.advantages(step))
    name = ADVANTAGES.name_of(type(estimator))
    if len(values) != len(step.rewards):
        raise MemFactoryError(
            f"the advantage estimator {name!r} gave {len(values)} advantages for {len(step.rewards)} trajectories "
            f"(step {step.step!r} of task {step.group.task.id!r})"
        )
    known = []
    for value in values:
        try:
            known.append(as_scalar(value))
        except ValueError as error:
            raise MemFactoryError(
                f"the advantage estimator {name!r} gave {value!r} as an advantage: {error} (step "
                f"{step.step!r} of task {step.group.task.id!r}); expected a finite number, or None if the reward "
                "is unknown"
            ) from None
    return [None if reward is None else value for value, reward in zip(known, step.rewards, strict=True)]


def known_rewards(rewards: Sequence[float | None]) -> list[float]:
    """The rewards that are not unknown."""
    return [reward for reward in rewards if reward is not None]

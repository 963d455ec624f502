"""GRPO's advantage: a trajectory against the mean of its group."""

from __future__ import annotations

from memfactory.policy.advantages.base import AdvantageEstimator, StepRewards
from memfactory.policy.objective import advantages, deviation
from memfactory.registry import ADVANTAGES


@ADVANTAGES.register("group", options="memfactory.config.objectives:GroupOptions")
class GroupAdvantage(AdvantageEstimator):
    """A_i = (r_i - mean) / s over the group; `train.normalize` says what s is (`objective.advantages`)."""

    def advantages(self, given: StepRewards) -> list[float | None]:
        training = self.training
        spread = deviation(given.batch)
        return advantages(given.rewards, training.normalize, training.advantage_epsilon, spread)

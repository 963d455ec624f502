"""GRPO's advantage: a trajectory against the mean of its group."""

from __future__ import annotations

from memfactory.policy.advantages.base import AdvantageEstimator, StepRewards
from memfactory.policy.objective import advantages, deviation
from memfactory.registry import ADVANTAGES


@ADVANTAGES.register("group", options="memfactory.config.objectives:GroupOptions")
class GroupAdvantage(AdvantageEstimator):
    """A_i = (r_i - mean) / s over the group; `train.normalize` names s (`objective.advantages`)."""

    def advantages(self, step: StepRewards) -> list[float | None]:
        training = self.training
        spread = deviation(step.batch) if training.normalize == "batch_std" else None
        return advantages(step.rewards, training.normalize, training.advantage_epsilon, spread)

"""GRPO's advantage: a trajectory against the mean of its group."""

from __future__ import annotations

from memfactory.registry import ADVANTAGES
from memfactory.trainers.advantages.base import AdvantageEstimator, StepRewards
from memfactory.trainers.objective import advantages, deviation


@ADVANTAGES.register("group", options="memfactory.config.objectives:GroupOptions")
class GroupAdvantage(AdvantageEstimator):
    """A_i = (r_i - mean) / s over the group; `train.normalize` says what s is (`objective.advantages`)."""

    def advantages(self, given: StepRewards) -> list[float | None]:
        training = self.training
        spread = deviation(given.batch)
        return advantages(given.rewards, training.normalize, training.advantage_epsilon, spread)

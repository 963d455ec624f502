"""RLOO's advantage: a trajectory against the others of its group."""

from __future__ import annotations

import math

from memfactory.policy.advantages.base import AdvantageEstimator, StepRewards, known_rewards
from memfactory.registry import ADVANTAGES


@ADVANTAGES.register("rloo", options="memfactory.config.objectives:EstimatorOptions")
class Rloo(AdvantageEstimator):
    """A_i = r_i - mean of the group's other rewards = n / (n - 1) (r_i - mean), n known rewards (arXiv 2402.14740).

    The baseline of a trajectory does not depend on its own reward, so that the gradient is unbiased. Fewer than two
    known rewards, or all equal, give exactly 0.
    """

    def advantages(self, step: StepRewards) -> list[float | None]:
        known = known_rewards(step.rewards)
        if len(known) < 2 or min(known) == max(known):
            return [None if reward is None else 0.0 for reward in step.rewards]
        total, others = math.fsum(known), len(known) - 1
        return [None if reward is None else reward - (total - reward) / others for reward in step.rewards]

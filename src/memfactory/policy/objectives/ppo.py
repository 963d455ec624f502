"""PPO's clipped objective."""

from __future__ import annotations

from memfactory.policy.objectives.base import Objective, Parts, Terms, clipped
from memfactory.registry import OBJECTIVES


@OBJECTIVES.register("ppo", options="memfactory.config.objectives:PpoOptions")
class Ppo(Objective):
    """PPO's clip on the ratio of each token.

    -min(r A, clip(r, 1 - low, 1 + high) A) (arXiv 1707.06347; high above low: DAPO, arXiv 2503.14476). With `dual_clip`
    c the loss of a token with A < 0 is at most c |A| (arXiv 1912.09729); tokens with A > 0 are not concerned.
    """

    def parts(self, terms: Terms) -> Parts:
        return clipped(terms.log_ratio.exp(), terms)

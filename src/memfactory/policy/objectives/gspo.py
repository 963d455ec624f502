"""GSPO: PPO's clip on the ratio of a whole turn."""

from __future__ import annotations

from memfactory.policy.objectives.base import Objective, Parts, Terms
from memfactory.policy.objectives.ppo import clipped
from memfactory.registry import OBJECTIVES


@OBJECTIVES.register("gspo", options="memfactory.config.objectives:GspoOptions")
class Gspo(Objective):
    """PPO's clip on one ratio per turn, the geometric mean of its tokens' ratios.

    r = exp(mean of d over the turn's tokens), as the paper's with turn weights (arXiv 2507.18071, which clips at 3e-4
    and 4e-4). A turn without trained tokens has ratio 1.
    """

    def parts(self, terms: Terms) -> Parts:
        count = terms.mask.sum(-1, keepdim=True).clamp(min=1)
        ratio = (terms.log_ratio.sum(-1, keepdim=True) / count).exp()
        return clipped(ratio.expand_as(terms.log_ratio), terms)

"""PPO's clipped objective."""

from __future__ import annotations

import torch
from torch import Tensor

from memfactory.policy.objectives.base import Objective, Parts, Terms
from memfactory.registry import OBJECTIVES


@OBJECTIVES.register("ppo", options="memfactory.config.objectives:PpoOptions")
class Ppo(Objective):
    """PPO's clip on the ratio of each token.

    -min(r A, clip(r, 1 - low, 1 + high) A) (arXiv 1707.06347; high above low: DAPO, arXiv 2503.14476). With `dual_clip`
    c the loss of a token with A < 0 is at most c |A| (arXiv 1912.09729); tokens with A > 0 are not concerned.
    """

    def parts(self, terms: Terms) -> Parts:
        return clipped(terms.log_ratio.exp(), terms)


def clipped(ratio: Tensor, terms: Terms) -> Parts:
    """PPO's pessimistic minimum on any ratio; the bounds count where they stop the gradient.

    -min(r A, clip(r, 1 - low, 1 + high) A), and for A < 0 at most c |A|, c being `dual_clip`.
    """
    options, advantages = terms.options, terms.advantages
    lower, upper = 1 - options.clip_low, 1 + options.clip_high
    loss = -torch.min(ratio * advantages, ratio.clamp(lower, upper) * advantages)
    low = (ratio < lower) & (advantages < 0)
    high = (ratio > upper) & (advantages > 0)
    if options.dual_clip is not None:
        bad = advantages < 0
        bounded = torch.minimum(loss, options.dual_clip * advantages.abs())
        high = high | (bad & (loss > options.dual_clip * advantages.abs()))
        loss = torch.where(bad, bounded, loss)
    return Parts(loss, ratio, low, high)

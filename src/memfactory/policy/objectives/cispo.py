"""CISPO: a policy gradient whose importance weight is bounded above."""

from __future__ import annotations

import torch

from memfactory.policy.objectives.base import Objective, Parts, Terms
from memfactory.registry import OBJECTIVES


@OBJECTIVES.register("cispo", options="memfactory.config.objectives:CispoOptions")
class Cispo(Objective):
    """Every token keeps a gradient, only its weight is bounded: -sg(min(r, clip_high)) A log pi.

    sg is stop-gradient (arXiv 2506.13585). `clip_high` is the bound itself (about 5 in arXiv 2510.13786), not its
    distance from 1.
    """

    def parts(self, terms: Terms) -> Parts:
        ratio = terms.log_ratio.detach().exp()
        high = ratio > terms.options.clip_high
        loss = -ratio.clamp(max=terms.options.clip_high) * terms.advantages * terms.logprobs
        return Parts(loss, ratio, torch.zeros_like(high), high)

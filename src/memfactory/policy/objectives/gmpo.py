"""GMPO: the geometric mean of a turn's token ratios, each clipped first."""

from __future__ import annotations

import torch

from memfactory.policy.objectives.base import Objective, Parts, Terms
from memfactory.registry import OBJECTIVES


@OBJECTIVES.register("gmpo", options="memfactory.config.objectives:GmpoOptions")
class Gmpo(Objective):
    """The geometric mean of a turn's clipped token ratios: one outlier moves it little (arXiv 2507.20673).

    With s = sign(A) and d' = s min(s d, s clip(d, -low, high)) for each token, the loss of a turn is
    -A exp(mean of d' over its tokens): for A > 0 a ratio counts at most e^high, for A < 0 at least e^-low. The bounds
    are log-ratios; the paper sets both to 0.4. Every token has its turn's loss, so that turn weights give the paper's
    mean. A clipped token passes no gradient on, the others of its turn do.
    """

    def parts(self, terms: Terms) -> Parts:
        options, good = terms.options, terms.advantages >= 0
        held = terms.log_ratio.clamp(-options.clip_low, options.clip_high)
        bounded = torch.where(good, torch.minimum(terms.log_ratio, held), torch.maximum(terms.log_ratio, held))
        count = terms.mask.sum(-1, keepdim=True).clamp(min=1)
        ratio = (bounded.sum(-1, keepdim=True) / count).exp().expand_as(terms.log_ratio)
        low = (terms.log_ratio < -options.clip_low) & ~good
        high = (terms.log_ratio > options.clip_high) & good
        return Parts(-terms.advantages * ratio, ratio, low, high)

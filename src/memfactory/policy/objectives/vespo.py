"""VESPO: a policy gradient weighed by a smooth function of the turn's importance weight."""

from __future__ import annotations

import math

import torch

from memfactory.policy.objectives.base import Objective, Parts, Terms, nowhere
from memfactory.registry import OBJECTIVES

LOWEST = math.log(1e-8)
HIGHEST = 20.0
POSITIVE = (2.0, 3.0)
NEGATIVE = (3.0, 2.0)


@OBJECTIVES.register("vespo", options="memfactory.config.objectives:VespoOptions")
class Vespo(Objective):
    """-sg(phi(w)) A log pi with phi(w) = exp(lambda + k ln w - lambda w), so phi(1) = 1 (arXiv 2602.10693).

    w = exp(sum of d over the turn), times the sampler's corrections if there are any; ln w is clamped to
    [ln 1e-8, 20]. (k, lambda) is (2, 3) for A >= 0 and (3, 2) for A < 0. A dropped token (correction 0) counts as
    1e-8 and so drops its turn.
    """

    takes_correction = True

    def parts(self, terms: Terms) -> Parts:
        log_weight = terms.log_ratio.detach().sum(-1, keepdim=True)
        if terms.correction is not None:
            log_weight = log_weight + terms.correction.log().clamp(LOWEST, HIGHEST).sum(-1, keepdim=True)
        log_weight = log_weight.clamp(LOWEST, HIGHEST)
        weight = log_weight.exp()
        good = terms.advantages >= 0
        k = torch.where(good, POSITIVE[0], NEGATIVE[0])
        decay = torch.where(good, POSITIVE[1], NEGATIVE[1])
        phi = (decay + k * log_weight - decay * weight).exp()
        ratio = weight.expand_as(terms.log_ratio)
        return Parts(-phi * terms.advantages * terms.logprobs, ratio, *nowhere(ratio))

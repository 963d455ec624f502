"""SAPO: a smooth gate in place of a clip."""

from __future__ import annotations

import torch

from memfactory.policy.objectives.base import Objective, Parts, Terms, nowhere
from memfactory.registry import OBJECTIVES


@OBJECTIVES.register("sapo", options="memfactory.config.objectives:SapoOptions")
class Sapo(Objective):
    """A smooth clip: -(4 / t) sigmoid(t (r - 1)) A, t being `sapo_positive` for A > 0, else `sapo_negative`.

    arXiv 2511.20347. At r = 1 the gradient is that of -r A.
    """

    def parts(self, terms: Terms) -> Parts:
        positive, negative = terms.options.sapo_positive, terms.options.sapo_negative
        temperature = torch.where(terms.advantages > 0, positive, negative).to(terms.advantages.dtype)
        ratio = terms.log_ratio.exp()
        gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
        return Parts(-gate * terms.advantages, ratio, *nowhere(ratio))

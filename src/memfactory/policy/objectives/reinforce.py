"""REINFORCE with a clipped importance weight; on-policy with A = 1 it is supervised fine-tuning."""

from __future__ import annotations

from memfactory.policy.objectives.base import Objective, Parts, Terms
from memfactory.registry import OBJECTIVES


@OBJECTIVES.register("reinforce", options="memfactory.config.objectives:ReinforceOptions")
class Reinforce(Objective):
    """-sg(clip(r, 1 - low, 1 + high)) A log pi: on-policy, plain REINFORCE (Williams 1992).

    With A = 1 and no old log-probabilities this is the negative log-likelihood, the loss of supervised fine-tuning.
    """

    def parts(self, terms: Terms) -> Parts:
        ratio = terms.log_ratio.detach().exp()
        lower, upper = 1 - terms.options.clip_low, 1 + terms.options.clip_high
        loss = -ratio.clamp(lower, upper) * terms.advantages * terms.logprobs
        return Parts(loss, ratio, ratio < lower, ratio > upper)

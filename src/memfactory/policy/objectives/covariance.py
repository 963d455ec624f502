"""Clip-Cov and KL-Cov: hold back the few tokens whose log-probability and advantage move together the most.

Entropy falls at a rate that the covariance of log-probability and advantage gives, and a small fraction of the tokens
carries most of it (arXiv 2505.22617). Over all N tokens of an optimizer step,
Cov_i = (log pi_i - mean log pi) (A_i - mean A), with the policy as it is before the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from memfactory.config.objectives import ClipCovOptions, KlCovOptions
from memfactory.policy.objectives.base import Objective, Parts, StepTokens, Terms, nowhere
from memfactory.policy.objectives.ppo import clipped
from memfactory.registry import OBJECTIVES

ROUNDING = 1e-5
"""Log-ratios below this are the rounding of two passes over the same weights."""


def covariances(tokens: StepTokens) -> Tensor:
    """Cov_i of every token, [tokens], in float64."""
    logprobs, advantages = tokens.logprobs.double(), tokens.advantages.double()
    return (logprobs - logprobs.mean()) * (advantages - advantages.mean())


def _budget(fraction: float, count: int) -> int:
    return max(1, int(fraction * count))


@OBJECTIVES.register("clip_cov", options="memfactory.config.objectives:ClipCovOptions")
class ClipCov(Objective):
    """PPO's clip, and no gradient for a few tokens sampled from those with a high covariance.

    `fraction` N tokens (at least one) are sampled from those with `low` < Cov_i < `high` that PPO has not clipped
    already; their loss is 0. The others have the loss of `ppo`. With few candidates all of them are sampled.
    """

    Options = ClipCovOptions
    options: ClipCovOptions
    marks = True

    def mark(self, tokens: StepTokens, draw: Random) -> Sequence[int]:
        values = covariances(tokens)
        ratio = tokens.log_ratio.double().exp()
        stopped = ((ratio > 1 + self.loss.clip_high) & (tokens.advantages > 0)) | (
            (ratio < 1 - self.loss.clip_low) & (tokens.advantages < 0)
        )
        candidates = ((values > self.options.low) & (values < self.options.high) & ~stopped).nonzero().flatten()
        # In the order of their covariances the draw does not depend on how tokens are spread over processes.
        ordered = candidates[values[candidates].argsort(stable=True)].tolist()
        return draw.sample(ordered, min(_budget(self.options.fraction, len(values)), len(ordered)))

    def parts(self, terms: Terms) -> Parts:
        parts = clipped(terms.log_ratio.exp(), terms)
        if terms.marked is None:
            return parts
        return Parts(parts.loss.masked_fill(terms.marked, 0.0), parts.ratio, parts.low, parts.high | terms.marked)


@OBJECTIVES.register("kl_cov", options="memfactory.config.objectives:KlCovOptions")
class KlCov(Objective):
    """-r A without a clip, and a penalty on the tokens with the highest covariance.

    The `fraction` N tokens (at least one) with the largest Cov_i have the loss -r A + `penalty` |d|, as the authors'
    code estimates the KL. A d that is 0 but for rounding is left alone: the sign of |d|'s gradient would be chance.
    """

    Options = KlCovOptions
    options: KlCovOptions
    marks = True

    def mark(self, tokens: StepTokens, draw: Random) -> Sequence[int]:
        values = covariances(tokens)
        chosen: list[int] = torch.topk(values, _budget(self.options.fraction, len(values))).indices.tolist()
        return chosen

    def parts(self, terms: Terms) -> Parts:
        ratio = terms.log_ratio.exp()
        loss = -ratio * terms.advantages
        if terms.marked is not None:
            held = terms.marked & (terms.log_ratio.abs() > ROUNDING)
            loss = torch.where(held, loss + self.options.penalty * terms.log_ratio.abs(), loss)
        return Parts(loss, ratio, *nowhere(ratio))

"""The maths of policy optimization: advantages, per-token losses, KL estimators and sampler corrections.

Tensors are [rows, tokens], one row a turn, padded on the right. `mask` marks the tokens that are trained on; what
stands elsewhere is ignored even where it is NaN, and every result there is exactly 0. Throughout, d is the log-ratio
log pi - log pi_old of a token, r = exp(d), and A the advantage of its turn. Every log-ratio is clamped to +-20 before
it is exponentiated (e^20 is about 5e8, so float32 stays finite); beyond that the ratio passes no gradient on. Half
precision is raised to float32 first. How tokens are weighed against each other is not known here (see `batch.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from memfactory.config.training import LossOptions, Normalize

LOG_RATIO_LIMIT = 20.0
VESPO_LOWEST = math.log(1e-8)
VESPO_POSITIVE = (2.0, 3.0)
VESPO_NEGATIVE = (3.0, 2.0)


def deviation(rewards: Sequence[float | None]) -> float:
    """The unbiased standard deviation of the known rewards; 0 for fewer than two, and exactly 0 where all are equal."""
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2 or min(known) == max(known):
        return 0.0
    mean = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1))


def advantages(
    rewards: Sequence[float | None],
    normalize: Normalize = "std",
    epsilon: float = 1e-4,
    batch_deviation: float | None = None,
) -> list[float | None]:
    """The advantages of one group: A_i = (r_i - mean) / (s + epsilon).

    s is the group's unbiased standard deviation for "std" (GRPO, arXiv 2402.03300), its population's for
    "population_std", and `batch_deviation`, that of the raw rewards of the whole batch, for "batch_std" (arXiv
    2508.08221); "none" does not divide (Dr. GRPO, arXiv 2503.20783); "mean" divides by the group's mean alone, and by
    nothing where that is 0 or less (MaxRL, arXiv 2602.02710, whose rewards are not negative). An unknown reward (None)
    is left out of mean and deviation and its advantage is None. Where the known rewards are all equal, or there is only
    one, every advantage is exactly 0.
    """
    known = [reward for reward in rewards if reward is not None]
    if not all(math.isfinite(reward) for reward in known):
        raise ValueError(f"rewards must be finite or None, got {list(rewards)}")
    if normalize == "batch_std" and batch_deviation is None:
        raise ValueError("normalize 'batch_std' needs the standard deviation of the batch's rewards")
    if len(known) < 2 or min(known) == max(known):
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(known) / len(known)
    scale = 1.0
    if normalize == "std":
        scale = deviation(known) + epsilon
    elif normalize == "population_std":
        scale = deviation(known) * math.sqrt((len(known) - 1) / len(known)) + epsilon
    elif normalize == "mean" and mean > 0:
        scale = mean
    elif normalize == "batch_std" and batch_deviation is not None:
        scale = batch_deviation + epsilon
    return [None if reward is None else (reward - mean) / scale for reward in rewards]


@dataclass(frozen=True)
class TokenLosses:
    """Per-token results, all [rows, tokens] and 0 where the mask is off.

    `loss` = `policy` + kl_weight x `kl`. `ratio` (detached) is the token's ratio, or its turn's for GSPO and VESPO.
    `clipped_low` and `clipped_high` (bool) mark where a bound of the objective took effect. `correction` (detached)
    is the sampler's importance weight.
    """

    loss: Tensor
    policy: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl: Tensor | None = None
    correction: Tensor | None = None


def token_losses(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    options: LossOptions,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
) -> TokenLosses:
    """The loss of every token: correction x objective + kl_weight x KL.

    `logprobs`, `old_logprobs`, `ref_logprobs` and `sampler_logprobs` are [rows, tokens] in nats, `advantages` [rows],
    `mask` bool [rows, tokens]. `old_logprobs` None means on-policy: r is exactly 1 and only its gradient remains.
    The KL term is neither corrected nor clipped; with `kl_unbiased` it is multiplied by r, whose gradient turns that of
    k3 into the KL's own (arXiv 2512.02556). Only `logprobs` receives a gradient.
    """
    if options.kl_weight > 0 and ref_logprobs is None:
        raise ValueError("kl_weight is above 0 but there are no reference log-probabilities")
    if options.sampler_correction != "none" and sampler_logprobs is None:
        raise ValueError(f"{options.sampler_correction} needs the sampler's log-probabilities")
    zero = torch.zeros((), dtype=_precise(logprobs).dtype, device=logprobs.device)
    current = torch.where(mask, _precise(logprobs), zero)
    old = current.detach() if old_logprobs is None else torch.where(mask, _precise(old_logprobs).detach(), zero)
    correction = None
    if sampler_logprobs is not None and options.sampler_correction != "none":
        sampler = torch.where(mask, _precise(sampler_logprobs).detach(), zero)
        correction = sampler_weights(old - sampler, mask, options)
    log_ratio = (current - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    terms = Terms(current, log_ratio, advantages.to(current.dtype)[:, None], mask, options, correction)
    parts = OBJECTIVES[options.objective](terms)
    weighed = parts.loss if correction is None or options.objective == "vespo" else parts.loss * correction
    policy = torch.where(mask, weighed, zero)
    kl = None
    if ref_logprobs is not None:
        reference = torch.where(mask, _precise(ref_logprobs).detach(), zero)
        kl = kl_estimate(current, reference, options.kl_estimator)
        if options.kl_unbiased:
            kl = kl * log_ratio.exp()
    loss = policy if kl is None or options.kl_weight == 0 else policy + options.kl_weight * kl
    return TokenLosses(
        loss=loss,
        policy=policy,
        ratio=torch.where(mask, parts.ratio.detach(), zero),
        clipped_low=parts.low & mask,
        clipped_high=parts.high & mask,
        kl=kl,
        correction=None if correction is None else torch.where(mask, correction, zero),
    )


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimates of KL(pi || ref) from tokens drawn from pi (J. Schulman, "Approximating KL divergence").

    With u = log ref - log pi: k1 = -u; k2 = u^2 / 2; k3 = exp(u) - u - 1, never negative. k1 is unbiased as a value,
    but its gradient as a loss is 0 in expectation: it is there for comparison, not for holding a policy back. In k3 u
    is clamped to at most 20.
    """
    u = _precise(ref_logprobs) - _precise(logprobs)
    if estimator == "k1":
        return -u
    if estimator == "k2":
        return u.square() / 2
    u = u.clamp(max=LOG_RATIO_LIMIT)
    return torch.expm1(u) - u


def sampler_weights(log_weights: Tensor, mask: Tensor, options: LossOptions) -> Tensor:
    """Importance weights policy / sampler, detached: [rows, tokens] for token modes, [rows, 1] for sequence modes.

    `log_weights` = log pi_old - log mu, 0 where the mask is off. Truncation takes min(w, correction_high) (TIS);
    masking keeps w inside [correction_low, correction_high] and drops the token or turn outside it. A turn's weight
    is the geometric mean of its tokens' weights or their product (`correction_turn`): the product leaves any band
    within some hundred tokens of a small constant drift.
    """
    log_weights = log_weights.detach()
    if options.sampler_correction.startswith("sequence"):
        log_weights = log_weights.sum(-1, keepdim=True)
        if options.correction_turn == "geometric":
            log_weights = log_weights / mask.sum(-1, keepdim=True).clamp(min=1)
    weights = log_weights.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if options.sampler_correction.endswith("truncate"):
        return weights.clamp(max=options.correction_high)
    inside = (weights >= options.correction_low) & (weights <= options.correction_high)
    return torch.where(inside, weights, torch.zeros_like(weights))


@dataclass(frozen=True)
class Terms:
    """What an objective is made from. `log_ratio` is clamped and 0 off the mask; `advantages` [rows, 1]."""

    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    mask: Tensor
    options: LossOptions
    correction: Tensor | None


@dataclass(frozen=True)
class Parts:
    """What an objective gives: loss and ratio per token, and where its lower and upper bound took effect."""

    loss: Tensor
    ratio: Tensor
    low: Tensor
    high: Tensor


def ppo(terms: Terms) -> Parts:
    """-min(r A, clip(r, 1 - low, 1 + high) A) (arXiv 1707.06347; high above low: DAPO, arXiv 2503.14476).

    With `dual_clip` c, r counts at most c in the first term: for A < 0 the loss is at most c |A| (arXiv 1912.09729).
    """
    return _clipped(terms.log_ratio.exp(), terms)


def gspo(terms: Terms) -> Parts:
    """PPO's clip on one ratio a turn, r = exp(mean of d over its tokens), as the paper's with turn weights.

    arXiv 2507.18071, which clips at 3e-4 and 4e-4. A turn without trained tokens has ratio 1.
    """
    count = terms.mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = (terms.log_ratio.sum(-1, keepdim=True) / count).exp()
    return _clipped(ratio.expand_as(terms.log_ratio), terms)


def cispo(terms: Terms) -> Parts:
    """-sg(min(r, clip_high)) A log pi: every token keeps a gradient, only its weight is bounded (arXiv 2506.13585).

    sg is stop-gradient. `clip_high` is the bound itself (about 5 in arXiv 2510.13786), not its distance from 1.
    """
    ratio = terms.log_ratio.detach().exp()
    high = ratio > terms.options.clip_high
    loss = -ratio.clamp(max=terms.options.clip_high) * terms.advantages * terms.logprobs
    return Parts(loss, ratio, torch.zeros_like(high), high)


def sapo(terms: Terms) -> Parts:
    """-(4 / t) sigmoid(t (r - 1)) A, a smooth clip; t is `sapo_positive` for A > 0, else `sapo_negative`.

    arXiv 2511.20347. At r = 1 the gradient is that of -r A.
    """
    positive, negative = terms.options.sapo_positive, terms.options.sapo_negative
    temperature = torch.where(terms.advantages > 0, positive, negative).to(terms.advantages.dtype)
    ratio = terms.log_ratio.exp()
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    return Parts(-gate * terms.advantages, ratio, *_nowhere(ratio))


def vespo(terms: Terms) -> Parts:
    """-sg(phi(w)) A log pi with phi(w) = exp(lambda + k ln w - lambda w), so phi(1) = 1 (arXiv 2602.10693).

    w = exp(sum of d over the turn), times the sampler's corrections where there are any; ln w is clamped to
    [ln 1e-8, 20]. (k, lambda) is (2, 3) for A >= 0 and (3, 2) for A < 0. A dropped token (correction 0) counts as
    1e-8 and so drops its turn.
    """
    log_weight = terms.log_ratio.detach().sum(-1, keepdim=True)
    if terms.correction is not None:
        log_weight = log_weight + terms.correction.log().clamp(VESPO_LOWEST, LOG_RATIO_LIMIT).sum(-1, keepdim=True)
    log_weight = log_weight.clamp(VESPO_LOWEST, LOG_RATIO_LIMIT)
    weight = log_weight.exp()
    good = terms.advantages >= 0
    k = torch.where(good, VESPO_POSITIVE[0], VESPO_NEGATIVE[0])
    decay = torch.where(good, VESPO_POSITIVE[1], VESPO_NEGATIVE[1])
    phi = (decay + k * log_weight - decay * weight).exp()
    ratio = weight.expand_as(terms.log_ratio)
    return Parts(-phi * terms.advantages * terms.logprobs, ratio, *_nowhere(ratio))


def reinforce(terms: Terms) -> Parts:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi: on-policy, plain REINFORCE (Williams 1992).

    With A = 1 and no old log-probabilities this is the negative log-likelihood, the loss of supervised fine-tuning.
    """
    ratio = terms.log_ratio.detach().exp()
    lower, upper = 1 - terms.options.clip_low, 1 + terms.options.clip_high
    loss = -ratio.clamp(lower, upper) * terms.advantages * terms.logprobs
    return Parts(loss, ratio, ratio < lower, ratio > upper)


OBJECTIVES: Mapping[str, Callable[[Terms], Parts]] = {
    "ppo": ppo,
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "vespo": vespo,
    "reinforce": reinforce,
}


def _clipped(ratio: Tensor, terms: Terms) -> Parts:
    """PPO's pessimistic minimum on any ratio; the bounds count where they stop the gradient."""
    options, advantages = terms.options, terms.advantages
    lower, upper = 1 - options.clip_low, 1 + options.clip_high
    free = ratio if options.dual_clip is None else ratio.clamp(max=options.dual_clip)
    loss = -torch.min(free * advantages, ratio.clamp(lower, upper) * advantages)
    low = (ratio < lower) & (advantages < 0)
    high = (ratio > upper) & (advantages > 0)
    if options.dual_clip is not None:
        high = high | ((ratio > options.dual_clip) & (advantages < 0))
    return Parts(loss, ratio, low, high)


def _nowhere(like: Tensor) -> tuple[Tensor, Tensor]:
    nowhere = torch.zeros_like(like, dtype=torch.bool)
    return nowhere, nowhere


def _precise(values: Tensor) -> Tensor:
    """float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

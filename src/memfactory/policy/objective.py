"""The maths of policy optimization: advantages, per-token losses, KL estimators and sampler corrections.

Tensors are Float[turns, tokens] (`advantages` Float[turns], `mask` Bool[turns, tokens]), one row per turn, padded on
the right, aligned to the reply tokens. `mask` is True at trained tokens; values elsewhere are ignored, even NaN, and
every result there is exactly 0. Throughout, d is the log-ratio log pi - log pi_old of a token, r = exp(d), and A the
advantage of its turn. Every log-ratio is clamped to +-20 before it is exponentiated (e^20 is about 5e8, so float32
stays finite); beyond that the ratio passes no gradient on. Half precision is raised to float32 first. The weights of
tokens are not known here (see `batch.token_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from memfactory.config.losses import LossOptions, Normalize
from memfactory.plugins.boundary import broken, guarded
from memfactory.policy.objectives.base import Objective, Parts, Terms, make_objective

LOG_RATIO_LIMIT = 20.0


def deviation(rewards: Sequence[float | None]) -> float:
    """The unbiased standard deviation of the known rewards; 0 for fewer than two, and exactly 0 if all are equal."""
    known = [reward for reward in rewards if reward is not None]
    # Equal rewards are compared and not left to the sum: rounding would give them a deviation of 1e-17, and dividing
    # by it would make noise of size 1 of them.
    if len(known) < 2 or min(known) == max(known):
        return 0.0
    # fsum: the result does not depend on the order of the trajectories.
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

    `loss` = `policy` + kl_coef x `kl` - entropy_coef x entropy. `ratio` (detached) is the token's ratio, or its
    turn's for GSPO, GMPO and VESPO. `clipped_low` and `clipped_high` (bool) mark where a bound of the objective took
    effect. `correction` (detached) is the sampler's importance weight, `cut` (bool) marks where it was
    truncated or masked.
    """

    loss: Tensor
    policy: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl: Tensor | None = None
    correction: Tensor | None = None
    cut: Tensor | None = None


@dataclass(frozen=True)
class LossInputs:
    """The inputs of the loss beside the policy's log-probabilities, [turns, tokens] each.

    `advantages` alone is [turns]. `mask` (bool) is True at trained tokens. The log-probabilities (nats) are those
    before the first of several updates (None: the policy's own, on-policy), of the reference and of the sampler.
    `marked` (bool) are the tokens that the objective chose over the whole optimizer step.
    """

    advantages: Tensor
    mask: Tensor
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    marked: Tensor | None = None


def token_losses(
    logprobs: Tensor,
    inputs: LossInputs,
    options: LossOptions,
    *,
    objective: Objective | None = None,
    kl_coef: float | None = None,
    entropies: Tensor | None = None,
) -> TokenLosses:
    """The loss of every token: correction x objective + kl_coef x KL - entropy_coef x entropy.

    `logprobs` [turns, tokens] are the policy's. `objective` is the one that `options` names (None: made here);
    `kl_coef` is the KL coefficient at this step (None: that of the options). `inputs.old_logprobs` None means
    on-policy: r is exactly 1 and only its gradient remains.
    The KL term and the entropy bonus are neither corrected nor clipped; with `kl_unbiased` the KL is multiplied by r,
    whose gradient turns that of k3 into the KL's own (arXiv 2512.02556). Only `logprobs` and `entropies` receive a
    gradient. With `kl_in_reward` the loss has no KL term. A correction that `auto` chose is left out where
    `inputs.sampler_logprobs` is None; one that a user wrote raises ValueError there.
    """
    objective = make_objective(options) if objective is None else objective
    coefficient = (options.kl_coef if kl_coef is None else kl_coef) if options.kl_in_loss else 0.0
    _check_inputs(inputs, options, coefficient)
    mask, old_logprobs = inputs.mask, inputs.old_logprobs
    zero = torch.zeros((), dtype=_precise(logprobs).dtype, device=logprobs.device)
    # where, and not a product: NaN off the mask times 0 is NaN, in the loss and in the gradient.
    current = torch.where(mask, _precise(logprobs), zero)
    # On-policy the ratio is exp(x - x.detach()): 1, with the gradient of log pi.
    old = current.detach() if old_logprobs is None else torch.where(mask, _precise(old_logprobs).detach(), zero)
    correction = None
    if inputs.sampler_logprobs is not None and options.corrects:
        sampler = torch.where(mask, _precise(inputs.sampler_logprobs).detach(), zero)
        # Of old and not of the current policy: the step's own change belongs to the ratio, and is clipped there.
        correction = sampler_weights(old - sampler, mask, options)
    log_ratio = (current - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    kl = None
    if inputs.reference_logprobs is not None:
        reference = torch.where(mask, _precise(inputs.reference_logprobs).detach(), zero)
        kl = kl_estimate(current, reference, options.kl_estimator)
        if options.kl_unbiased:
            kl = kl * log_ratio.exp()
    advantages = inputs.advantages.to(current.dtype)[:, None]
    parts = _parts(objective, Terms(current, log_ratio, advantages, mask, options, correction, inputs.marked))
    corrected = parts.loss if correction is None or objective.takes_correction else parts.loss * correction
    # Masked again: an objective may return anything off the mask.
    policy = torch.where(mask, corrected, zero)
    # A KL of coefficient 0 is measured but not added: 0 x an infinite KL would be NaN.
    loss = policy if kl is None or coefficient == 0 else policy + coefficient * kl
    if entropies is not None and options.entropy_coef > 0:
        loss = loss - options.entropy_coef * torch.where(mask, _precise(entropies), zero)
    elif options.entropy_coef > 0:
        raise ValueError("entropy_coef is above 0 but there are no entropies")
    return TokenLosses(
        loss=loss,
        policy=policy,
        ratio=torch.where(mask, parts.ratio.detach(), zero),
        clipped_low=parts.low & mask,
        clipped_high=parts.high & mask,
        kl=kl,
        correction=None if correction is None else torch.where(mask, correction, zero),
        cut=None if correction is None else _cut(correction, options) & mask,
    )


def _check_inputs(inputs: LossInputs, options: LossOptions, kl_coef: float) -> None:
    """Raise ValueError for log-probabilities that the options need and `inputs` lack."""
    if kl_coef > 0 and inputs.reference_logprobs is None:
        raise ValueError("kl_coef is above 0 but there are no reference log-probabilities")
    if options.corrects and not options.automatic and inputs.sampler_logprobs is None:
        raise ValueError(f"{options.sampler_correction} needs the sampler's log-probabilities")


def _parts(objective: Objective, terms: Terms) -> Parts:
    """The result of `objective`. Raises PluginError if a user's own fails or returns something else; running out of
    memory is passed on, since the training pass then halves the micro-batch."""
    kind = type(objective)
    with guarded(kind, doing="in the loss", letting=(torch.OutOfMemoryError,)):
        parts = objective.parts(terms)
    if not isinstance(parts, Parts):
        raise broken(kind, "parts", f"returned {type(parts).__name__}, not Parts(loss, ratio, low, high)")
    expected = terms.log_ratio.shape
    for name, value, boolean in (
        ("loss", parts.loss, False),
        ("ratio", parts.ratio, False),
        ("low", parts.low, True),
        ("high", parts.high, True),
    ):
        if not isinstance(value, Tensor) or value.shape != expected or (value.dtype == torch.bool) != boolean:
            shape = f"{value.dtype} of {[*value.shape]}" if isinstance(value, Tensor) else type(value).__name__
            kinds = "bool" if boolean else "numbers"
            raise broken(kind, "parts", f"gave as `{name}` {shape}; expected {kinds} of {[*expected]} (rows, tokens)")
    return parts


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimates of KL(pi || ref) from tokens sampled from pi (J. Schulman, "Approximating KL divergence").

    With u = log ref - log pi: k1 = -u; k2 = u^2 / 2; k3 = exp(u) - u - 1, never negative. k1 is unbiased as a value,
    but its gradient as a loss is 0 in expectation: it is there for comparison, not for holding a policy back. In k3 u
    is clamped to at most 20.
    """
    u = _precise(ref_logprobs) - _precise(logprobs)
    if estimator == "k1":
        return -u
    if estimator == "k2":
        return u.square() / 2
    # Clamped above alone: k3 grows as e^u there, and only as -u below.
    u = u.clamp(max=LOG_RATIO_LIMIT)
    # expm1: near u = 0 the terms of e^u - 1 - u cancel, and k3 is u^2 / 2.
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
            # A turn without a trained token has a sum of 0: divided by 1 its weight is 1.
            log_weights = log_weights / mask.sum(-1, keepdim=True).clamp(min=1)
    weights = log_weights.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if options.sampler_correction.endswith("truncate"):
        return weights.clamp(max=options.correction_high)
    inside = (weights >= options.correction_low) & (weights <= options.correction_high)
    return torch.where(inside, weights, torch.zeros_like(weights))


def _cut(weights: Tensor, options: LossOptions) -> Tensor:
    """Where the weights of `sampler_weights` were truncated or masked."""
    if options.sampler_correction.endswith("truncate"):
        return weights >= options.correction_high
    return weights == 0


def _precise(values: Tensor) -> Tensor:
    """float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

"""Measures of an optimizer step: summed over its micro-batches, then merged over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from accelerate import Accelerator
from torch import Tensor

from memfactory.policy.forward import MicroBatch
from memfactory.policy.objective import TokenLosses

SUMS = (
    "loss",
    "policy_loss",
    "kl",
    "clip/low",
    "clip/high",
    "ratio/mean",
    "entropy",
    "sampler_difference/mean",
    "correction/mean",
    "correction/cut",
)
MAXIMA = ("ratio/max", "sampler_difference/max")
WEIGHTED = ("loss", "policy_loss")
OPTIONAL = frozenset(
    {"kl", "entropy", "sampler_difference/mean", "sampler_difference/max", "correction/mean", "correction/cut"}
)
"""Measures that a step may lack, such as `kl` without a KL term."""


@dataclass(frozen=True)
class Measures:
    """The measures of one micro-batch over its trained tokens: `sums` [SUMS and the number of tokens], `maxima`
    [MAXIMA].

    They stay on the device: reading a number there would wait for all work before it. `absent` are those of OPTIONAL
    that the micro-batch does not have.
    """

    sums: Tensor
    maxima: Tensor
    absent: frozenset[str]


@torch.no_grad()
def measured(batch: MicroBatch, logprobs: Tensor, losses: TokenLosses, entropies: Tensor | None) -> Measures:
    """The measures of one micro-batch from its per-token tensors, [turns, tokens] each."""
    inputs, weights = batch.inputs, batch.weights[:, None]
    zero = torch.zeros((), device=logprobs.device)
    difference: Tensor | None = None
    if inputs.sampler_logprobs is not None:
        at_sampling = logprobs if inputs.old_logprobs is None else inputs.old_logprobs
        difference = torch.where(inputs.mask, (at_sampling - inputs.sampler_logprobs).abs(), 0.0)
    values: dict[str, Tensor | None] = {
        "loss": weights * losses.loss,
        "policy_loss": weights * losses.policy,
        "kl": losses.kl,
        "clip/low": losses.clipped_low,
        "clip/high": losses.clipped_high,
        "ratio/mean": losses.ratio,
        "entropy": entropies,
        "sampler_difference/mean": difference,
        "sampler_difference/max": difference,
        "correction/mean": losses.correction,
        "correction/cut": losses.cut,
    }
    terms = [zero if value is None else value for value in (values[name] for name in SUMS)]
    # float64: the sum over a step's tokens would lose in float32 the very digits that a run is compared by.
    sums = torch.stack([value.sum(dtype=torch.float64) for value in (*terms, inputs.mask)])
    maxima = torch.stack([losses.ratio.max(), (zero if difference is None else difference).max()]).double()
    return Measures(sums, maxima, frozenset(name for name in OPTIONAL if values[name] is None))


def merged(parts: Sequence[Measures], accelerator: Accelerator, device: torch.device) -> dict[str, float]:
    """Over all processes: weighted sums of the losses, means over trained tokens of the others, and maxima.

    `parts` are this process's micro-batches, none for a process without a turn. A measure that no process has is left
    out. Every process must call it.
    """
    sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64, device=device)
    maxima = torch.zeros(len(MAXIMA), dtype=torch.float64, device=device)
    for part in parts:
        sums += part.sums
        maxima = torch.maximum(maxima, part.maxima)
    names = (*SUMS, *MAXIMA)
    absent = frozenset.intersection(OPTIONAL, *(part.absent for part in parts)) if parts else OPTIONAL
    present = torch.tensor([name not in absent for name in names], device=device)
    # One gather for all: each is a round trip between processes.
    rows = accelerator.gather(torch.cat([sums, maxima, present.double()])[None])
    sums_of_all = rows[:, : len(sums)].sum(0).tolist()
    maxima_of_all = rows[:, len(sums) : -len(names)].amax(0).tolist()
    present_in_any = rows[:, -len(names) :].amax(0).tolist()
    tokens = sums_of_all[-1]
    means = [value if name in WEIGHTED else value / tokens for name, value in zip(SUMS, sums_of_all, strict=False)]
    values = zip(names, (*means, *maxima_of_all), present_in_any, strict=True)
    return {name: value for name, value, present in values if present} | {"tokens/trained": tokens}


def summarized(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The measures of several updates on one rollout as one: means of means, maxima of maxima, the sum of tokens.

    Updates without a trained token are empty and do not count.
    """
    taken = [update for update in updates if update]
    summary: dict[str, float] = {}
    for name in taken[0] if taken else ():
        values = [update[name] for update in taken if name in update]
        if name in MAXIMA:
            summary[name] = max(values)
        elif name == "tokens/trained":
            summary[name] = sum(values)
        elif name in ("learning_rate", "skipped_steps"):
            summary[name] = values[-1]
        else:
            summary[name] = fmean(values)
    return summary

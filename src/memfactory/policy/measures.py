"""What an optimizer step measures while it goes through its micro-batches, merged over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from accelerate import Accelerator
from torch import Tensor

from memfactory.policy.batch import Batch
from memfactory.policy.objective import TokenLosses

SUMS = ("loss", "policy_loss", "kl", "clip/low", "clip/high", "ratio/mean", "entropy", "sampler_difference/mean")
MAXIMA = ("ratio/max", "sampler_difference/max")
WEIGHTED = ("loss", "policy_loss")


class Measures:
    """Sums and maxima over trained tokens, kept on the device: reading them would wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64, device=device)
        self.maxima = torch.zeros(len(MAXIMA), dtype=torch.float64, device=device)
        self.absent = {"kl", "entropy", "sampler_difference/mean", "sampler_difference/max"}

    @torch.no_grad()
    def add(self, batch: Batch, logprobs: Tensor, losses: TokenLosses, entropies: Tensor | None) -> None:
        """Take in one micro-batch; per-token tensors are laid out as `batch.reply_mask`."""
        mask, nothing = batch.reply_mask, torch.zeros((), device=logprobs.device)
        weights = batch.weights[:, None]
        sampled = nothing
        if batch.sampler_logprobs is not None:
            at_sampling = logprobs if batch.old_logprobs is None else batch.old_logprobs
            sampled = torch.where(mask, (at_sampling - batch.sampler_logprobs).abs(), 0.0)
            self.absent -= {"sampler_difference/mean", "sampler_difference/max"}
        if losses.kl is not None:
            self.absent.discard("kl")
        if entropies is not None:
            self.absent.discard("entropy")
        values = {
            "loss": weights * losses.loss,
            "policy_loss": weights * losses.policy,
            "kl": losses.kl,
            "clip/low": losses.clipped_low,
            "clip/high": losses.clipped_high,
            "ratio/mean": losses.ratio,
            "entropy": entropies,
            "sampler_difference/mean": sampled,
        }
        given = [nothing if value is None else value for value in (values[name] for name in SUMS)]
        self.sums += torch.stack([value.sum(dtype=torch.float64) for value in [*given, mask]])
        self.maxima = torch.maximum(self.maxima, torch.stack([losses.ratio.max(), sampled.max()]).double())

    def merged(self, accelerator: Accelerator) -> dict[str, float]:
        """Over all processes: weighted sums of the losses, means over trained tokens of the rest, and maxima.

        What no process had, such as a KL term, is left out. All processes must call it.
        """
        present = torch.tensor([name not in self.absent for name in (*SUMS, *MAXIMA)], device=self.sums.device)
        rows = accelerator.gather(torch.cat([self.sums, self.maxima, present.double()])[None])
        sums = rows[:, : len(SUMS) + 1].sum(0).tolist()
        maxima = rows[:, len(SUMS) + 1 : -len(present)].amax(0).tolist()
        there = rows[:, -len(present) :].amax(0).tolist()
        tokens = sums[-1]
        means = [value if name in WEIGHTED else value / tokens for name, value in zip(SUMS, sums, strict=False)]
        merged = dict(zip((*SUMS, *MAXIMA), (*means, *maxima), strict=True))
        return {name: value for (name, value), known in zip(merged.items(), there, strict=True) if known} | {
            "tokens/trained": tokens
        }


def summarized(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What several updates on one rollout measured, as one: means of means, maxima of maxima, all trained tokens.

    Updates that had nothing to train on are empty and do not count.
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

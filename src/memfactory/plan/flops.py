"""The utilization of a machine by a training pass: floating-point operations are counted, not measured.

Counts are of the work that has to be done: recomputed activations and padding are not in them, so the ratio to
the peak is model FLOPs utilization (MFU, arXiv 2204.02311).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memfactory.config.grpo import GrpoOptions
from memfactory.plan.footprint import Architecture
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.objectives.base import make_objective

# Dense bfloat16 tensor-core peaks in FLOP/s, from the vendor's data sheets; the first name that occurs counts.
PEAKS = (("H200", 989e12), ("H100", 989e12), ("H800", 989e12), ("A100", 312e12), ("A800", 312e12), ("L40S", 362e12))


def training_flops(sizes: Architecture, turns: Sequence[TrainingTurn], options: GrpoOptions) -> float:
    """Floating-point operations of one training pass over `turns`, with every log-probability scored beforehand.

    A forward pass costs 2 operations per weight and token, and 4 per layer, attention width and attended position;
    logits are scored at reply tokens only. The backward pass costs twice the forward, or once if the weights are frozen
    under adapters.
    """
    tokens = sum(turn.length for turn in turns)
    logits = sum(len(turn.reply_ids) for turn in turns)
    attended = sum(turn.length**2 / 2 for turn in turns)
    forward = sizes.forward_flops(tokens, logits, attended)
    passes = options.epochs * (3 if options.lora is None else 2)
    loss = options.loss
    scored = (loss.kl_coef > 0) + (loss.kl_in_reward or options.minibatches * options.epochs > 1)
    # Objectives that choose tokens over a whole step score its turns before each update.
    chosen = options.epochs if make_objective(loss).marks else 0
    return forward * (passes + scored + chosen)


def device_peak(device: torch.device) -> float | None:
    """The device's peak in FLOP/s; None for one that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS if known in name), None)


def device_metrics(device: torch.device) -> dict[str, float]:
    """Peak memory since the last call, in GiB, on CUDA."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    reserved = torch.cuda.max_memory_reserved(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory/peak_gib": peak, "memory/reserved_gib": reserved}

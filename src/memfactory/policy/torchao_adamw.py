"""torchao's AdamW with moments of 8 or 4 bits, made reproducible. Imported only for these kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torchao.optim import AdamW4bit, AdamW8bit

from memfactory.seeds import stream_seed


class _Reproducible:
    """Rounds with draws from a stream of the update's own, so that a resumed run and every process draw the same.

    The updates taken are in the parameter groups, and so in `state_dict`.
    """

    seed: int
    param_groups: list[dict[str, Any]]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        taken = self.param_groups[0].get("updates", 0) + 1
        for group in self.param_groups:
            group["updates"] = taken
            # torchao compiles the rate in unless it is a tensor.
            group["lr"] = torch.tensor(float(group["lr"]))
        devices = sorted({p.device.index or 0 for group in self.param_groups for p in group["params"] if p.is_cuda})
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream_seed(self.seed, "rounding", taken))
            return super().step(closure)  # type: ignore[misc]


class ReproducibleAdamW8bit(_Reproducible, AdamW8bit):
    """8-bit moments in blocks of 256 (arXiv 2110.02861)."""


class ReproducibleAdamW4bit(_Reproducible, AdamW4bit):
    """4-bit moments in blocks of 128 (arXiv 2309.01507)."""


def torchao_adamw(
    kind: str, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, seed: int
) -> Optimizer:
    """torchao's AdamW of `kind` over `groups`; bfloat16 parameters are rounded at random."""
    made = ReproducibleAdamW4bit if kind == "adamw_4bit_torchao" else ReproducibleAdamW8bit
    optimizer = made(groups, lr=lr, betas=betas, eps=eps, bf16_stochastic_round=True)
    optimizer.seed = seed
    return optimizer

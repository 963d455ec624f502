"""AdamW and its learning-rate schedule from the options. It knows nothing of losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from memfactory.config.training import OptimizerOptions
from memfactory.errors import ConfigError


def make_optimizer(parameters: Iterable[Parameter], options: OptimizerOptions) -> Optimizer:
    """AdamW (arXiv 1711.05101) over the parameters that require a gradient; only matrices decay.

    On CUDA the fused kernel is used: it needs no temporary copy of the weights. `adamw_8bit` is bitsandbytes' 8-bit
    state (arXiv 2110.02861); ConfigError where it is not installed or there is no CUDA. `auto` is the one on CUDA and
    the other elsewhere.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (options.beta1, options.beta2)
    fused = all(parameter.is_cuda for parameter in trained)
    if options.kind == "adamw" or (options.kind == "auto" and not fused):
        return AdamW(groups, lr=options.learning_rate, betas=betas, eps=options.epsilon, fused=fused)
    if not torch.cuda.is_available():
        raise ConfigError("optimizer.kind adamw_8bit needs an NVIDIA GPU; there is none here. Use kind: adamw")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"optimizer.kind {options.kind} needs bitsandbytes ({error}): pip install 'memfactory[bitsandbytes]'"
        ) from None
    return AdamW8bit(groups, lr=options.learning_rate, betas=betas, eps=options.epsilon)


def learning_rate_share(step: int, options: OptimizerOptions, total_steps: int) -> float:
    """The share of the peak learning rate at optimizer step `step`, counted from 0.

    Of W warm-up steps the n-th has n / W, so the first is not wasted on a rate of 0. After them a falling schedule
    goes from 1 to `final_share`, which it reaches when `total_steps` have been taken and keeps from then on.
    """
    warmup = options.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - done if options.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return options.final_share + (1 - options.final_share) * left


class Schedule:
    """Sets the optimizer's learning rate to `learning_rate_share` of its peak; its state is the steps taken."""

    def __init__(self, optimizer: Optimizer, options: OptimizerOptions, total_steps: int) -> None:
        self.optimizer = optimizer
        self.options = options
        self.total_steps = total_steps
        self.steps = 0
        self._apply()

    @property
    def learning_rate(self) -> float:
        """The rate of the next optimizer step."""
        return self.options.learning_rate * learning_rate_share(self.steps, self.options, self.total_steps)

    def step(self) -> None:
        """One optimizer step was taken."""
        self.steps += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.steps = state["steps"]
        self._apply()

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate

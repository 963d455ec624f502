"""From gradients to new weights: their sum over processes, AdamW, the learning-rate schedule. It knows no loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from memfactory.config.optimizer import TORCHAO_KINDS, OptimizerKind, OptimizerOptions
from memfactory.config.readiness import low_bit_packages
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.policy.sliced_adamw import SlicedAdamW

log = logging.getLogger("memfactory")


def sum_gradients(accelerator: Accelerator, parameters: Sequence[Parameter]) -> None:
    """Give every process the sum of all processes' gradients (docs/decisions/0001). Every process must call it.

    A sum and no mean: each token's weight is already that of the whole optimizer step.
    """
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        own = parameter.grad
        if own is None:
            # A process without a turn still takes part, or the others would wait for it for ever.
            own = torch.zeros_like(parameter, dtype=torch.float32)
        # In place: accelerator.reduce would copy every gradient, 1.6 GB for the embedding of a 4B model.
        torch.distributed.all_reduce(own)
        parameter.grad = own


class WholeGradients:
    """Sums and clips gradients that each process holds whole, for a policy, which inherits it."""

    accelerator: Accelerator
    trained: list[Parameter]
    max_grad_norm: float

    def _sum_gradients(self) -> None:
        """Give every process the sum of all gradients."""
        sum_gradients(self.accelerator, self.trained)

    def _clipped_norm(self) -> float:
        """The norm of the whole gradient, which is then clipped to `max_grad_norm`."""
        return float(self.accelerator.clip_grad_norm_(self.trained, self.max_grad_norm))


def make_optimizer(parameters: Iterable[Parameter], options: OptimizerOptions, seed: int = 0) -> Optimizer:
    """AdamW (arXiv 1711.05101) of `options.kind` over the parameters that require a gradient; only matrices decay.

    On CUDA torch's fused kernel is used, which needs no temporary copy of the weights. bfloat16 parameters are rounded
    at random, with draws that depend on `seed` and the updates taken. Raises ConfigError if the kind needs a package or
    a device that is not here.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas, rate, epsilon = (options.beta1, options.beta2), options.learning_rate, options.epsilon
    stochastic = any(parameter.dtype == torch.bfloat16 for parameter in trained)
    kind = kind_for(trained, options)
    if kind in TORCHAO_KINDS:
        try:
            from memfactory.policy.torchao_adamw import torchao_adamw
        except ImportError as error:
            raise _missing(kind, "torchao", error) from None
        return torchao_adamw(kind, groups, lr=rate, betas=betas, eps=epsilon, seed=seed)
    if kind == "adamw_8bit":
        return _bitsandbytes(groups, rate, betas, epsilon)
    if stochastic or kind == "adamw_offload":
        offload = kind == "adamw_offload"
        return SlicedAdamW(groups, lr=rate, betas=betas, eps=epsilon, seed=seed, host_moments=offload)
    return AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=all(parameter.is_cuda for parameter in trained))


def kind_for(trained: Sequence[Parameter], options: OptimizerOptions) -> OptimizerKind:
    """The kind of optimizer for the parameters in training, as `auto` selects it on their device."""
    return options.kind_on(
        cuda=all(parameter.is_cuda for parameter in trained),
        stochastic=any(parameter.dtype == torch.bfloat16 for parameter in trained),
        packages=low_bit_packages(),
    )


def check_kind(saved: str | None, chosen: str | None) -> None:
    """Raise ConfigError if `auto` selected `saved` for a checkpoint and `chosen` now; None: it was not asked."""
    if saved is None or chosen is None or saved == chosen:
        return
    extra = "bitsandbytes" if saved == "adamw_8bit" else "torchao" if saved in TORCHAO_KINDS else None
    remedy = f"pip install 'memfactory[{extra}]', or resume" if extra else "Resume"
    raise ConfigError(
        f"train.optimizer.kind: auto selected {saved} for the checkpoint but selects {chosen} here, and their states "
        f"differ. {remedy} on a machine like that of the checkpoint"
    )


@contextmanager
def fitting(subject: str, remedy: str) -> Iterator[None]:
    """Raise MemFactoryError with a `remedy` if memory runs out for `subject`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise MemFactoryError(
            f"{subject} does not fit into memory ({reason}). Train adapters (train.lora), or {remedy}"
        ) from error


def _bitsandbytes(groups: list[dict[str, Any]], rate: float, betas: tuple[float, float], epsilon: float) -> Optimizer:
    """bitsandbytes' 8-bit moments (arXiv 2110.02861)."""
    if not torch.cuda.is_available():
        raise ConfigError("optimizer.kind adamw_8bit needs an NVIDIA GPU; there is none here. Use kind: adamw")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise _missing("adamw_8bit", "bitsandbytes", error) from None
    return AdamW8bit(groups, lr=rate, betas=betas, eps=epsilon)


def _missing(kind: str, extra: str, error: ImportError) -> ConfigError:
    return ConfigError(f"optimizer.kind {kind} needs {extra} ({error}): pip install 'memfactory[{extra}]'")


def learning_rate_fraction(step: int, options: OptimizerOptions, total_steps: int) -> float:
    """The fraction of the peak learning rate at optimizer step `step`, counted from 0.

    Of W warm-up steps the n-th has n / W, so the first is not wasted on a rate of 0. After them a falling schedule
    goes from 1 to `min_lr_ratio`, which it reaches when `total_steps` have been taken and keeps from then on.
    """
    warmup = options.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - done if options.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return options.min_lr_ratio + (1 - options.min_lr_ratio) * left


class Schedule:
    """Sets the optimizer's learning rate to `learning_rate_fraction` of its peak.

    Its state is the steps taken and how many it was spread over. A run that goes on with more steps is spread over all
    of them anew, with a warning: at the end of the old schedule the rate may be 0, at which nothing more is learned.
    """

    def __init__(self, optimizer: Optimizer, options: OptimizerOptions, total_steps: int) -> None:
        self.optimizer = optimizer
        self.options = options
        self.total_steps = total_steps
        self.steps = 0
        self._apply()

    @property
    def learning_rate(self) -> float:
        """The rate of the next optimizer step."""
        return self.options.learning_rate * learning_rate_fraction(self.steps, self.options, self.total_steps)

    def step(self) -> float:
        """Go on by one optimizer step, which was taken or skipped. The result is the learning rate it was due at."""
        rate = self.learning_rate
        self.steps += 1
        self._apply()
        return rate

    def state_dict(self) -> dict[str, int]:
        """The steps taken, and the steps that the schedule is spread over."""
        return {"steps": self.steps, "total_steps": self.total_steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the steps of `state`; a schedule over another number of steps warns."""
        self.steps = state["steps"]
        self._apply()
        before = state.get("total_steps", self.total_steps)
        if self.options.schedule != "constant" and before != self.total_steps:
            old = self.options.learning_rate * learning_rate_fraction(self.steps, self.options, before)
            change = "" if self.learning_rate == old else f" instead of {old:.3g}"
            log.warning(
                "the %s schedule is spread over %d optimizer steps now, not over %d as before: after step %d the "
                "learning rate is %.3g%s",
                *(self.options.schedule, self.total_steps, before, self.steps, self.learning_rate, change),
            )

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate

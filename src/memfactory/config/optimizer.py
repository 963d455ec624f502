"""Options of the optimizer and of adapters. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field

from memfactory.registry import Options


class LoraOptions(Options):
    """Low-rank adapters (arXiv 2106.09685) in float32; the base model is frozen."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Linear layers with an adapter, by name."""


OptimizerKind = Literal["adamw", "adamw_8bit", "adamw_8bit_torchao", "adamw_4bit_torchao", "adamw_offload", "auto"]
TORCHAO_KINDS = ("adamw_8bit_torchao", "adamw_4bit_torchao")
LOW_BIT_PACKAGES = frozenset({"bitsandbytes", "torchao"})
"""The packages with 8-bit moments."""


class OptimizerOptions(Options):
    """AdamW, its learning-rate schedule and gradient clipping."""

    kind: OptimizerKind = "adamw"
    """adamw: float32 moments; adamw_8bit: 8-bit moments (extra `bitsandbytes`, CUDA); adamw_8bit_torchao and
    adamw_4bit_torchao: 8-bit and 4-bit moments (extra `torchao`); adamw_offload: float32 moments in host memory; auto:
    adamw on a CPU; on CUDA 8-bit by the package that is installed, or adamw_offload without one."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the square root of the second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a linear or cosine decay to `min_lr_ratio` of the peak."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps of linear warm-up from 0."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Final learning rate of a decay, as a fraction of the peak."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""

    def kind_on(
        self, *, cuda: bool, stochastic: bool = False, packages: Collection[str] = LOW_BIT_PACKAGES
    ) -> OptimizerKind:
        """The kind that `auto` selects where `packages` can be used.

        bitsandbytes cannot round at random, so `stochastic` leaves torchao. Offloaded moments need no package and
        equal AdamW's.
        """
        if self.kind != "auto":
            return self.kind
        if not cuda:
            return "adamw"
        if "bitsandbytes" in packages and not stochastic:
            return "adamw_8bit"
        return "adamw_8bit_torchao" if "torchao" in packages else "adamw_offload"

    def without_effect(self) -> Mapping[str, str]:
        return {"min_lr_ratio": "schedule is constant"} if self.schedule == "constant" else {}

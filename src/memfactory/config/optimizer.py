"""Options of the optimizer and of adapters. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from memfactory.registry import Options


class LoraOptions(Options):
    """Low-rank adapters (arXiv 2106.09685) in float32; the base model stays frozen."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Which linear layers get an adapter."""


OptimizerKind = Literal["adamw", "adamw_8bit", "adamw_8bit_torchao", "adamw_4bit_torchao", "adamw_offload", "auto"]
TORCHAO_KINDS = ("adamw_8bit_torchao", "adamw_4bit_torchao")


class OptimizerOptions(Options):
    """AdamW, its schedule and its limits."""

    kind: OptimizerKind = "adamw"
    """adamw: float32 moments; adamw_8bit: 8-bit moments (extra `bitsandbytes`, CUDA); adamw_8bit_torchao and
    adamw_4bit_torchao: moments of so many bits (extra `torchao`); adamw_offload: float32 moments in the host's memory;
    auto: 8 bit on CUDA, else adamw."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay on matrices; vectors (norms, biases) get none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up: not at all, or to `min_lr_ratio` of its peak."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The share of the peak that a falling schedule ends at."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""

    def kind_on(self, *, cuda: bool, stochastic: bool = False) -> OptimizerKind:
        """The kind that `auto` stands for: with stochastic rounding the 8-bit moments are torchao's."""
        if self.kind != "auto":
            return self.kind
        if not cuda:
            return "adamw"
        return "adamw_8bit_torchao" if stochastic else "adamw_8bit"

    def without_effect(self) -> Mapping[str, str]:
        return {"min_lr_ratio": "schedule is constant"} if self.schedule == "constant" else {}

"""Fused RMSNorm and SwiGLU: they save less for the backward pass and read memory fewer times.

Their results are those of transformers' own layers; a trial on a few states decides whether one replaces another.
Rotary embeddings, which a GPU computes in fewer kernels, are in `model.rotary`.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from memfactory.model.linear import use_fast_products
from memfactory.model.rotary import fuse_rotary

NORM_WEIGHTS, NORM_SETTINGS = {"weight"}, {"variance_epsilon"}
PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def fuse_layers(model: PreTrainedModel) -> None:
    """Let the RMS norms and SwiGLU blocks of `model` compute as here if their results are the same.

    Weights and all names stay as they are, those of the modules' classes too. Wide linear layers multiply by oneDNN
    where that is faster (`model.linear`), and rotary embeddings take fewer kernels on a GPU (`model.rotary`).
    """
    use_fast_products(model)
    fuse_rotary(model)
    classes: dict[type, type] = {}
    for module in model.modules():
        original = type(module)
        if original not in classes:
            classes[original] = _fused(module) or original
        module.__class__ = classes[original]


def fusible(model: nn.Module) -> bool:
    """Whether `model`, which needs no weights for this, has norms and feed-forward blocks that look like those here."""
    return {FusedNorm, FusedGate} <= {_kind(module) for module in model.modules()}


def keep_products(model: nn.Module) -> None:
    """Have feed-forward blocks save their products for the backward pass.

    Gradient checkpointing computes whole layers again anyway; computing their products once more would only cost.
    """
    for module in model.modules():
        if isinstance(module, FusedGate):
            module.recomputes = False


class FusedNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) weight over the last dimension, in float32 up to the weight (arXiv 1910.07467)."""

    variance_epsilon: float
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize with the fused kernel."""
        if not torch.is_grad_enabled() and hidden_states.dtype == self.weight.dtype == torch.float32:
            # For a handful of tokens the call of a function of our own would cost more than the norm.
            return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        if not torch.is_grad_enabled() and _has_kernel(hidden_states):
            return _by_kernel(hidden_states, self.weight, self.variance_epsilon)[0]
        output: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return output


class FusedGate(nn.Module):
    """down(silu(gate(x)) up(x)) (arXiv 2002.05202), whose product is computed again in the backward pass."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    recomputes = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Apply the gated feed-forward layer with the fused kernel."""
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        if not torch.is_grad_enabled():
            output: Tensor = self.down_proj(nn.functional.silu(gate).mul_(up))
            return output
        product: Tensor = _GatedProduct.apply(gate, up)
        if not (self.recomputes and product.requires_grad):
            output = self.down_proj(product)
            return output
        place, size, dtype = product.data_ptr(), product.numel(), product.dtype
        parts = gate.detach(), up.detach()

        # down_proj saves its input for its weight's gradient: the product itself, recognised by its memory. The shape
        # alone is saved in its place, and the product is made again from gate and up, which are saved anyway.
        def pack(saved: Tensor) -> Tensor | torch.Size:
            same = saved.data_ptr() == place and saved.numel() == size and saved.is_contiguous()
            return saved.shape if same and saved.dtype == dtype else saved

        def unpack(saved: Tensor | torch.Size) -> Tensor:
            return saved if isinstance(saved, Tensor) else nn.functional.silu(parts[0]).mul_(parts[1]).view(saved)

        with saved_tensors_hooks(pack, unpack):
            output = self.down_proj(product)
        return output


class _RmsNorm(torch.autograd.Function):
    """`FusedNorm` with its gradient. With n = x r, r = 1 / sqrt(mean(x^2) + epsilon) and s the slope at n:

    that at x is r (s - n mean(s n)). Only x and r are saved. A GPU has a kernel for each direction.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        if _has_kernel(hidden):
            output, scale = _by_kernel(hidden, weight, epsilon)
            ctx.save_for_backward(hidden, weight, scale)
            return output
        precise = hidden.float() if hidden.dtype.itemsize < 4 else hidden
        squares = _dots(precise, precise).unsqueeze(-1)
        scale = squares.div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return weight * (precise * scale).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, scale = ctx.saved_tensors
        if _has_kernel(hidden):
            mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
            arguments = gradient.contiguous(), hidden.to(gradient.dtype), weight.shape, scale, weight.to(gradient.dtype)
            one, other = torch.ops.aten._fused_rms_norm_backward(*arguments, mask)
            return one.to(hidden.dtype), other.to(weight.dtype) if mask[1] else None, None
        normed = hidden.to(scale.dtype) * scale
        into_weight = None
        if ctx.needs_input_grad[1]:
            flat = gradient.flatten(0, -2).to(scale.dtype), normed.flatten(0, -2)
            into_weight = _dots(*flat, dim=0).to(weight.dtype)
        slope = (gradient * weight).to(scale.dtype)
        along = _dots(slope, normed).unsqueeze(-1).div_(hidden.shape[-1])
        into_hidden = torch.addcmul(slope, normed, along, value=-1).mul_(scale)
        return into_hidden.to(hidden.dtype), into_weight, None


def _has_kernel(hidden: Tensor) -> bool:
    """Whether the norm of these states is one kernel: on CUDA, in the versions of torch that have its gradient too."""
    return hidden.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm_backward")


def _by_kernel(hidden: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The norm and r. The operator and not `rms_norm`, which autocast would compute in float32 at two casts more."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    output, scale = torch.ops.aten._fused_rms_norm(hidden.to(dtype), weight.shape, weight.to(dtype), epsilon)
    return output, scale


def _dots(one: Tensor, other: Tensor, dim: int = -1) -> Tensor:
    """Sums of products along `dim` in the tensors' own type; autocast would round them to its type first."""
    with torch.autocast(one.device.type, enabled=False):
        return torch.linalg.vecdot(one, other, dim=dim)


class _GatedProduct(torch.autograd.Function):
    """silu(gate) up, for which only gate and up are saved."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        into_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return into_gate, nn.functional.silu(gate).mul_(gradient)


def _kind(module: nn.Module) -> type | None:
    """Which of the classes here looks like `module`."""
    if len(signature(type(module).forward).parameters) != 2:
        # It takes more than states: a gate, say.
        return None
    own, children = {name for name, _ in module.named_parameters(recurse=False)}, dict(module.named_children())
    if own == NORM_WEIGHTS and not children and vars(module).keys() >= NORM_SETTINGS:
        return FusedNorm
    if not own and children.keys() == PARTS and isinstance(children["gate_proj"], nn.Linear):
        return FusedGate
    return None


def _fused(module: nn.Module) -> type | None:
    """The class of `module` with its forward pass from here; None if no class here has the same results."""
    kind = _kind(module)
    if kind is None:
        return None
    weight = module.get_parameter("weight" if kind is FusedNorm else "gate_proj.weight")
    fused: type = type(type(module).__name__, (kind, type(module)), {})
    return fused if _same(module, fused, weight) else None


def _same(module: nn.Module, fused: type, weight: Tensor) -> bool:
    """Whether `module` as a `fused` has the same results for a few states of its width, the last one of `weight`."""
    original, width = type(module), weight.shape[-1]
    states = torch.linspace(-2, 3, 3 * width, device=weight.device).roll(width // 2).view(1, 3, width).to(weight.dtype)
    results = []
    with torch.no_grad():
        expected = module(states)
    module.__class__ = fused
    try:
        for graded in (False, True):
            with torch.set_grad_enabled(graded):
                results.append(module(states).detach())
    finally:
        module.__class__ = original
    bound = 1e-5 if weight.dtype == torch.float32 else 2e-2
    return all(
        result.dtype == expected.dtype and torch.allclose(result, expected, rtol=bound, atol=bound)
        for result in results
    )

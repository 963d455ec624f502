"""Matrix products of linear layers in float32 on a CPU with AVX-512, through oneDNN and not through MKL.

MKL takes its AVX2 path on processors of other makers than Intel: there oneDNN's product is twice as fast, forwards and
backwards. The result differs by rounding alone. Narrow layers, and few rows at a time, keep torch's own product.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Of a narrower matrix, or for fewer rows, the call takes as long as it saves.
_LEAST_WIDTH, _LEAST_ROWS = 192, 16
# Rows of a sum of products that are made at one time.
_BLOCK = 8192
# oneDNN compiles a product for every number of rows and keeps it, half a MiB each: so only for multiples of these.
_MULTIPLES = ((64, 16), (512, 64), (None, 128))


class FastLinear(nn.Linear):
    """x W' + b as `nn.Linear` has it, with the product that is fastest on this machine."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by oneDNN if it can, by torch otherwise."""
        if torch.is_grad_enabled() and _is_fast(input, self.weight):
            output: Tensor = _Linear.apply(input, self.weight, self.bias)
            return output
        return multiply(input, self.weight, self.bias)


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `module` is a linear layer and nothing else: a subclass may be quantised, or add something on top."""
    return type(module) in (nn.Linear, FastLinear)


def use_fast_products(model: nn.Module) -> None:
    """Let the wide linear layers of `model` multiply by oneDNN where that is faster; names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear and min(module.weight.shape) >= _LEAST_WIDTH and has_fast_products():
            module.__class__ = FastLinear


def multiply(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """states W' + b, [..., outputs], without a gradient. The weight may be a transposed view: it is read in place."""
    if not _is_fast(states, weight):
        return linear(states, weight, bias)
    flat = states.flatten(0, -2)
    padding = -len(flat) % _multiple(len(flat))
    if padding:
        flat = nn.functional.pad(flat, (0, 0, 0, padding))
    output = _product(flat, weight, bias)
    return output[: len(output) - padding].view(*states.shape[:-1], len(weight))


def add_products(total: Tensor, ones: Tensor, others: Tensor) -> None:
    """Add to `total` [a, b] the sum over n of the outer products of ones[n] and others[n]: [n, a] and [n, b].

    Without a temporary of the size of `total`, which for a head is the largest matrix of a small model: in place, or a
    block of rows at a time.
    """
    if _is_fast(ones, total) and ones.dtype == others.dtype:
        for first in range(0, len(total), _BLOCK):
            block = slice(first, first + _BLOCK)
            total[block] += _sum_of_products(ones[:, block], others)
    elif total.dtype == ones.dtype:
        total.addmm_(ones.t(), others)
    else:
        total += ones.t() @ others


def _is_fast(states: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these states [..., width] and this matrix, and is worth its call."""
    return (
        states.dtype == weight.dtype == torch.float32
        and states.device.type == weight.device.type == "cpu"
        and min(weight.shape) >= _LEAST_WIDTH
        and states.numel() >= _LEAST_ROWS * states.shape[-1]
        and has_fast_products()
        and not torch.is_autocast_enabled("cpu")
    )


def _sum_of_products(ones: Tensor, others: Tensor) -> Tensor:
    """The sum over n of the outer products of ones[n] and others[n]."""
    rows = len(ones) - len(ones) % _multiple(len(ones))
    total = _product(ones[:rows].t(), others[:rows].t())
    return total.addmm_(ones[rows:].t(), others[rows:]) if rows < len(ones) else total


def _product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return output


def _multiple(rows: int) -> int:
    return next(multiple for limit, multiple in _MULTIPLES if limit is None or rows <= limit)


@cache
def has_fast_products() -> bool:
    """Whether this machine multiplies by oneDNN, and well: fixed by the hardware, so that a run resumes as it was."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    weight, states = torch.linspace(-1, 1, 48 * 32).view(48, 32), torch.linspace(-1, 1, 3 * 32).view(3, 32)
    try:
        by_onednn = _product(states.t().contiguous().t(), weight.t().contiguous().t())
    except (RuntimeError, AttributeError):
        return False
    return torch.allclose(by_onednn, linear(states, weight), atol=1e-5)


class _Linear(torch.autograd.Function):
    """y = x W' + b with its gradient: with g that of y, x has g W, W has g' x and b the sum of g."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_states, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(states if for_weight else None, weight if for_states else None)
        return multiply(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        into_states = into_weight = into_bias = None
        if weight is not None:
            into_states = multiply(gradient, weight.t())
        if states is not None:
            into_weight = _sum_of_products(flat, states.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            into_bias = flat.sum(0)
        return into_states, into_weight, into_bias

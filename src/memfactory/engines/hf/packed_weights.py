"""A copy of a model's weights laid out for few rows at a time, while it samples on a CPU.

A decoding step multiplies every weight by a handful of rows. The layout of training is slow for that: the
multiplication spends more time on reordering the weights than on products. oneDNN keeps a copy in its own order. It
knows no architecture: every `nn.Linear` is multiplied in that way.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from memfactory.model.free_memory import return_free_memory
from memfactory.model.linear import is_linear

log = logging.getLogger("memfactory")
# The most rows of a step; for more of them the weights' own layout is nearly as fast.
_ROWS = 64
# oneDNN compiles a product for every number of rows, which takes half a MiB and half a millisecond: so only multiples.
_MULTIPLE = 8
# The fewest numbers of a weight; below them the call takes longer than the product.
_SMALLEST = 64 * 64
# Copying the weights takes as long as five steps of 8 rows save. Fewer rows save little.
_STEPS, _LEAST_ROWS = 5, 4
# A smaller copy is not worth the time of returning its memory.
_RETURNED_BYTES = 2**26


class PackedWeights:
    """The copy of up to `limit` bytes of the weights of `model`, from the fifth decoding step on until `release`.

    Weights must not change in between. Weights of another type than float32 are not copied, nor any without oneDNN.
    Passes with gradients use the model's own weights all the same. Meanwhile the model cannot be copied or pickled;
    its state_dict does not change.
    """

    def __init__(self, model: nn.Module, limit: int) -> None:
        self._model, self._limit = model, limit
        self._steps = 0
        self._packed: list[nn.Linear] = []

    def count_step(self, rows: int) -> None:
        """A decoding step of `rows` rows begins."""
        if rows < _LEAST_ROWS:
            return
        self._steps += 1
        if self._steps == _STEPS and self._limit and can_pack():
            self._pack()

    def release(self) -> None:
        """Free the copy's memory."""
        self._steps = freed = 0
        while self._packed:
            # In this order an interrupt leaves nothing behind.
            self._packed[-1].__dict__.pop("forward", None)
            freed += self._packed.pop().weight.nbytes
        if freed >= _RETURNED_BYTES:
            return_free_memory()

    def _pack(self) -> None:
        room = self._limit
        for module in self._model.modules():
            if not _is_packable(module) or module.weight.nbytes > room or "forward" in vars(module):
                continue
            try:
                weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _ROWS)
            except RuntimeError as error:
                log.info("not all weights are copied for decoding: %s", error)
                return
            self._packed.append(module)
            module.__dict__["forward"] = partial(_multiply, module, weight)
            room -= module.weight.nbytes


def can_pack() -> bool:
    """Whether this machine multiplies float32 weights in oneDNN's own layout, by a trial on a small product."""
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return False
    weight = torch.linspace(-1, 1, 48 * 32).view(48, 32)
    states = torch.linspace(-1, 1, 3 * 32).view(3, 1, 32)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        product = torch.ops.mkldnn._linear_pointwise(states, packed, None, "none", [], "")
    except (RuntimeError, AttributeError):
        return False
    return torch.allclose(product, nn.functional.linear(states, weight), atol=1e-5)


def _is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the weight of `module` is copied."""
    if not is_linear(module):
        return False
    weight = module.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() >= _SMALLEST


def _multiply(module: nn.Linear, weight: Tensor, states: Tensor) -> Tensor:
    """The product for `states` [rows, 1, width] of a decoding step; any other is the module's own."""
    rows = states.shape[0]
    steps = states.ndim == 3 and states.shape[1] == 1 and 1 < rows <= _ROWS
    if not steps or torch.is_grad_enabled() or states.dtype != torch.float32:
        return type(module).forward(module, states)
    padding = -rows % _MULTIPLE
    if padding:
        states = nn.functional.pad(states, (0, 0, 0, 0, 0, padding))
    output: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, module.bias, "none", [], "")
    return output[:rows]

"""A copy of a model's weights laid out for few rows at a time, while it samples on a CPU.

A decoding step multiplies every weight by a handful of rows. For that the layout that the weights have in training is
slow: the multiplication spends more time on bringing them into its own order than on products. oneDNN keeps a copy
that is in order. It knows no architecture: whatever is an `nn.Linear` is multiplied in that way.
"""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor, nn

log = logging.getLogger("memfactory")
# For up to so many rows; beyond them the weights' own layout is nearly as fast.
_ROWS = 64
# oneDNN compiles a product for every number of rows, which takes half a MiB and half a millisecond: so only multiples.
_MULTIPLE = 8
# Below so many numbers the call takes longer than the product.
_SMALLEST = 64 * 64
# Copying the weights costs what five steps of 8 rows bring in. Fewer rows bring in little.
_STEPS, _LEAST_ROWS = 5, 4


class PackedWeights:
    """The copy of up to `limit` bytes of the weights of `model`, from the fifth decoding step on until `release`.

    Weights must not change in between. Those that are not float32, and all where oneDNN cannot be had, stay as they
    are. Passes with gradients take the model's own weights all the same. Meanwhile the model cannot be copied or
    pickled; its state_dict is as ever.
    """

    def __init__(self, model: nn.Module, limit: int) -> None:
        self._model, self._limit = model, limit
        self._steps = 0
        self._packed: list[nn.Linear] = []

    def count_step(self, rows: int) -> None:
        """A decoding step of so many rows begins."""
        if rows < _LEAST_ROWS:
            return
        self._steps += 1
        if self._steps == _STEPS and self._limit and can_pack():
            self._pack()

    def release(self) -> None:
        """Give the copy's memory back."""
        self._steps = 0
        while self._packed:
            # In this order an interrupt leaves nothing behind.
            self._packed[-1].__dict__.pop("forward", None)
            self._packed.pop()

    def _pack(self) -> None:
        room = self._limit
        for module in self._model.modules():
            size = _packed_bytes(module)
            if size is None or size > room or "forward" in vars(module):
                continue
            assert isinstance(module, nn.Linear)
            try:
                weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _ROWS)
            except RuntimeError as error:
                log.info("not all weights are copied for decoding: %s", error)
                return
            self._packed.append(module)
            module.__dict__["forward"] = partial(_multiply, module, weight)
            room -= size


def can_pack() -> bool:
    """Whether weights can be multiplied here in oneDNN's own layout, in the type that they have."""
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return False
    weight = torch.linspace(-1, 1, 48 * 32).view(48, 32)
    states = torch.linspace(-1, 1, 3 * 32).view(3, 1, 32)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        found = torch.ops.mkldnn._linear_pointwise(states, packed, None, "none", [], "")
    except (RuntimeError, AttributeError):
        return False
    return torch.allclose(found, nn.functional.linear(states, weight), atol=1e-5)


def _packed_bytes(module: nn.Module) -> int | None:
    """What a copy of the weight of `module` takes; None for one that is not copied."""
    # Not those that inherit: they may be quantised, or compute something else on top.
    if type(module) is not nn.Linear:
        return None
    weight = module.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or weight.numel() < _SMALLEST:
        return None
    return weight.nbytes


def _multiply(module: nn.Linear, weight: Tensor, states: Tensor) -> Tensor:
    """The product for `states` [rows, 1, width] of a decoding step; any other goes the usual way."""
    rows = states.shape[0]
    steps = states.ndim == 3 and states.shape[1] == 1 and 1 < rows <= _ROWS
    if not steps or torch.is_grad_enabled() or states.dtype != torch.float32:
        return type(module).forward(module, states)
    padding = -rows % _MULTIPLE
    if padding:
        states = nn.functional.pad(states, (0, 0, 0, 0, 0, padding))
    output: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, module.bias, "none", [], "")
    return output[:rows]

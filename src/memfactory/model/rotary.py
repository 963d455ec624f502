"""Rotary embeddings on a GPU in few kernels: one of Liger, or three of torch instead of five.

With the halves x = [a, b] of a head, transformers computes x cos + [-b, a] sin. That is x cos + [b, a] s with
s = [-sin, sin], and [b, a] is one roll. Its gradient is the rotation by the opposite angle (arXiv 2104.09864).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("memfactory")
# The function of a transformers model file that rotates queries and keys.
NAME = "apply_rotary_pos_emb"
Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fuse_rotary(model: nn.Module) -> None:
    """Let attention layers like those of `model` rotate in few kernels on a GPU; on a CPU nothing changes.

    It holds for all models of the same kind in this process, since transformers looks the function up in its file.
    """
    for file in {type(module).__module__ for module in model.modules()}:
        modeling = sys.modules.get(file)
        original = getattr(modeling, NAME, None)
        if modeling is not None and original is not None and not isinstance(original, Rotation):
            setattr(modeling, NAME, Rotation(original))


class Rotation:
    """`original`, or on a GPU the fastest function with the same results, by a trial for each type and width."""

    def __init__(self, original: Rotate) -> None:
        self._original = original
        self._chosen: dict[tuple[torch.dtype, torch.dtype, int], Rotate] = {}

    # Called as transformers calls the original: its own arguments behind these four mean another layout.
    def __call__(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Queries and keys [rows, heads, tokens, width], rotated by `cos` and `sin` [rows or 1, tokens, width]."""
        if not query.is_cuda or args or kwargs or query.dtype != key.dtype or cos.shape[-1] != query.shape[-1]:
            return self._original(query, key, cos, sin, *args, **kwargs)
        kind = (query.dtype, cos.dtype, query.shape[-1])
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(query, cos)
        return self._chosen[kind](query, key, cos, sin)

    @torch.no_grad()
    def _choose(self, query: Tensor, cos: Tensor) -> Rotate:
        width, device = query.shape[-1], query.device
        states = torch.linspace(-3, 3, 6 * 5 * width, device=device).sin().view(1, 5, 6, width).to(query.dtype)
        angles = torch.linspace(0, 2, 5 * width // 2, device=device).view(1, 5, width // 2)
        angles = torch.cat([angles, angles], -1)
        turn = angles.cos().to(cos.dtype), angles.sin().to(cos.dtype)
        bound = 1e-5 if torch.promote_types(query.dtype, cos.dtype) == torch.float32 else 2e-2

        def halves() -> tuple[Tensor, Tensor]:
            # As projections give them: heads side by side in memory. Fresh, as Liger's kernel writes in place.
            return states[:, :, :4].clone().transpose(1, 2), states[:, :, 4:].clone().transpose(1, 2)

        expected = self._original(*halves(), *turn)
        for rotate in filter(None, (_liger(), _rotate)):
            try:
                results = rotate(*halves(), *turn)
            except (RuntimeError, TypeError, ValueError, AssertionError) as error:
                log.info("%s is not used: %s", getattr(rotate, "__name__", rotate), error)
                continue
            pairs = list(zip(results, expected, strict=True))
            if all(one.dtype == other.dtype and torch.allclose(one, other, bound, bound) for one, other in pairs):
                return rotate
        return self._original


def _liger() -> Rotate | None:
    """Liger's kernel if the extra `liger` is installed."""
    try:
        from liger_kernel.transformers.rope import liger_rotary_pos_emb
    except ImportError:
        return None
    rotate: Rotate = liger_rotary_pos_emb
    return rotate


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, cos.dtype)
    cos, signed = cos.unsqueeze(1), _signed(sin).unsqueeze(1)
    if query.shape[2] == 1 and not torch.is_grad_enabled():
        # One token a row is a matter of launches: queries and keys turn together.
        both = _turned(torch.cat([query, key], 1).to(dtype), cos, signed)
        return both[:, : query.shape[1]], both[:, query.shape[1] :]
    return _Turn.apply(query.to(dtype), cos, signed), _Turn.apply(key.to(dtype), cos, signed)


def _turned(states: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), signed)


def _signed(sin: Tensor) -> Tensor:
    """[-sin, sin] of the halves of the last dimension. It is made once for all layers, which pass one tensor."""
    signed: Tensor | None = getattr(sin, "_memfactory_signed", None)
    if signed is None:
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        sin._memfactory_signed = signed  # type: ignore[attr-defined]
    return signed


class _Turn(torch.autograd.Function):
    """A rotation, for which nothing of the states is saved."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed)
        return _turned(states, cos, signed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, signed = ctx.saved_tensors
        # The opposite angle: the sine changes its sign.
        return torch.addcmul(gradient * cos, gradient.roll(gradient.shape[-1] // 2, -1), signed, value=-1), None, None

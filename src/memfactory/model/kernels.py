"""Attention over one part of the keys: output and log-sum-exp, their gradient, and how two parts are merged.

Fast kernels where the device has them, the formula elsewhere. It knows no trees and no model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What a kernel wants to be given back in its backward pass, beside its inputs, output and log-sum-exp.
Kept = tuple[Any, ...]


def can_attend(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a fast kernel for parts in this type: on CUDA only in half precision."""
    return device.type == "cpu" or (device.type == "cuda" and dtype in (torch.bfloat16, torch.float16))


def merge(output: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys from that over each: outputs [..., width], log-sum-exps [...]."""
    share = (other_weight - weight).sigmoid().unsqueeze(-1)
    merged = torch.lerp(output.to(share.dtype), other.to(share.dtype), share)
    return merged.to(output.dtype), torch.logaddexp(weight, other_weight)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible` is True and -inf elsewhere, which is added to the scores."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Kept]:
    """Output [rows, heads, queries, width] and float32 log-sum-exp [rows, heads, queries] of one part.

    `query` is [rows, heads, queries, width], `key` and `value` [rows, key heads, keys, width]; the heads of one key
    head lie side by side. `causal` is for as many keys as queries. `mask` ([rows, 1, 1, keys], see `additive`) hides
    keys; a query needs at least one.
    """
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return *kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scale), ()
    if _has_flash(query) and mask is None:
        output, weight, *kept = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, False, scale=scale
        )
        return output, weight, tuple(kept[:6])
    return *plain_part(query, key, value, scale, causal, mask), ()


def attend_part_gradient(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    outcome: tuple[Tensor, Tensor, Kept],
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value (`inputs`); output and log-sum-exp (`outcome`) are those over all keys."""
    output, weight, kept = outcome
    given = (gradient.contiguous(), *inputs, output, weight.contiguous())
    if gradient.device.type == "cpu":
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return backward(*given, 0.0, causal, scale=scale)
    if _has_flash(gradient):
        backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
        return backward(*given, *kept[:4], 0.0, causal, *kept[4:], scale=scale)
    return plain_part_gradient(gradient, inputs, (output, weight), scale, causal)


def _has_flash(query: Tensor) -> bool:
    return can_attend(query.device, query.dtype) and query.shape[-1] <= 256


def plain_part(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attend_part` as its formula says, with all scores in memory: for devices and masks without a kernel."""
    scores = _scores(query, key, scale, causal)
    if mask is not None:
        scores = scores + mask
    weight = scores.logsumexp(-1)
    output = (scores - weight.unsqueeze(-1)).exp().to(value.dtype) @ value
    return output.reshape(query.shape), weight.reshape(query.shape[:-1])


def plain_part_gradient(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], outcome: tuple[Tensor, Tensor], scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `plain_part`, given output and log-sum-exp over all keys of the merged attention."""
    query, key, value = inputs
    output, weight = outcome
    precise = weight.dtype
    folded = _by_key_head(gradient, key).to(precise)
    probabilities = (_scores(query, key, scale, causal) - _by_key_head(weight.unsqueeze(-1), key)).exp()
    mean = (folded * _by_key_head(output, key).to(precise)).sum(-1, keepdim=True)
    slopes = probabilities * (folded @ value.to(precise).transpose(-1, -2) - mean) * scale
    into_query = (slopes @ key.to(precise)).reshape(query.shape)
    into_key = slopes.transpose(-1, -2) @ _by_key_head(query, key).to(precise)
    into_value = probabilities.transpose(-1, -2) @ folded
    return into_query.to(query.dtype), into_key.to(key.dtype), into_value.to(value.dtype)


def _scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    """[rows, key heads, heads of a key head x queries, keys], float32 at least; what lies in the future is -inf."""
    scores = (_by_key_head(query, key) @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32))
    scores *= scale
    if causal:
        length = key.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=key.device).triu(1)
        scores.masked_fill_(future.repeat(query.shape[1] // key.shape[1], 1), -torch.inf)
    return scores


def _by_key_head(values: Tensor, key: Tensor) -> Tensor:
    """[rows, heads, queries, n] as [rows, key heads, heads of a key head x queries, n]."""
    rows, _, _, width = values.shape
    return values.reshape(rows, key.shape[1], -1, width)

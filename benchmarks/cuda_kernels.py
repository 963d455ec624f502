"""Kernels of torch that only CUDA has, by their formulas, with the checks of their arguments that CUDA makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
# The log-sum-exps of the memory-efficient kernel are padded to whole blocks of queries.
EFFICIENT_BLOCK = 32


def scores_of(query: Tensor, key: Tensor, scale: float | None, causal: bool) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1).float()
    scores = query.float() @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    queries, keys = scores.shape[-2:]
    if causal and queries > 1:
        future = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
        scores = scores.masked_fill(future, -torch.inf)
    return scores


def weighted(scores: Tensor, value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, the probabilities rounded to the kernel's type before the second product."""
    value = value.repeat_interleave(scores.shape[1] // value.shape[1], 1).float()
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    output = exponentials.to(dtype).float() @ value / exponentials.sum(-1, keepdim=True)
    # Heads side by side in memory, as the kernels write them.
    return output.to(dtype).transpose(1, 2).contiguous().transpose(1, 2), scores.logsumexp(-1)


def check_flash(query: Tensor, key: Tensor, value: Tensor) -> None:
    for tensor in (query, key, value):
        assert tensor.dtype in HALF and tensor.dtype == query.dtype, f"flash attention takes no {tensor.dtype}"
        assert tensor.dim() == 4 and tensor.stride(-1) == 1, "flash attention needs a contiguous last dimension"
    assert query.shape[-1] % 8 == 0 and query.shape[-1] <= 256, f"flash attention takes no heads of {query.shape[-1]}"
    assert query.shape[0] == key.shape[0] and key.shape == value.shape and query.shape[1] % key.shape[1] == 0


# As torch declares it: behind the three come dropout, whether it is causal, and debugging.
def flash(query: Tensor, key: Tensor, value: Tensor, *options: Any, scale: float | None = None) -> tuple[Any, ...]:
    causal = bool(options[1]) if len(options) > 1 else False
    check_flash(query, key, value)
    output, weight = weighted(scores_of(query, key, scale, causal), value, query.dtype)
    state = (None, None, query.shape[2], key.shape[2], torch.empty(2, dtype=torch.uint64), torch.empty(0))
    return output, weight.contiguous(), *state, torch.empty(0)


# As torch declares it.
def flash_backward(*args: Any, scale: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    gradient, query, key, value, output, weight, _, _, queries, keys, _, causal, _, _ = args
    check_flash(query, key, value)
    assert gradient.dtype == output.dtype == query.dtype and weight.dtype == torch.float32
    assert (
        weight.is_contiguous()
        and weight.shape == query.shape[:3]
        and (queries, keys)
        == (
            query.shape[2],
            key.shape[2],
        )
    )
    group = query.shape[1] // key.shape[1]
    wide_key, wide_value = (tensor.repeat_interleave(group, 1).float() for tensor in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    probabilities = (scores_of(query, key, scale, causal) - weight[..., None]).exp()
    mean = (gradient.float() * output.float()).sum(-1, keepdim=True)
    slopes = probabilities * (gradient.float() @ wide_value.transpose(-1, -2) - mean)
    rounded = slopes.to(query.dtype).float()
    into_query = rounded @ wide_key * factor
    into_key = rounded.transpose(-1, -2) @ query.float() * factor
    into_value = probabilities.to(query.dtype).float().transpose(-1, -2) @ gradient.float()
    into_key, into_value = (tensor.unflatten(1, (key.shape[1], group)).sum(2) for tensor in (into_key, into_value))
    return into_query.to(query.dtype), into_key.to(key.dtype), into_value.to(value.dtype)


# As torch declares it: behind them come whether it needs a log-sum-exp, dropout, and whether it is causal.
def efficient(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *options: Any, scale: float | None = None
) -> tuple[Tensor, ...]:
    causal = bool(options[2]) if len(options) > 2 else False
    rows, heads, queries, _ = query.shape
    for tensor in (query, key, value):
        assert tensor.dtype == query.dtype and tensor.stride(-1) == 1 and tensor.shape[:2] == (rows, heads)
        assert all(stride % 8 == 0 for stride in tensor.stride()[:3]), f"strides {tensor.stride()} are not aligned"
    scores = scores_of(query, key, scale, causal)
    if bias is not None:
        assert bias.dtype == query.dtype and bias.shape == scores.shape, "the bias has another type or shape"
        assert bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in bias.stride()[:3]), "the bias is not aligned"
        scores = scores + bias.float()
    output, weight = weighted(scores, value, query.dtype)
    padded = -(-queries // EFFICIENT_BLOCK) * EFFICIENT_BLOCK
    weights = torch.full((rows, heads, padded), torch.inf)
    weights[:, :, :queries] = weight
    return output, weights, torch.empty(()), torch.empty(())


def rms_norm(states: Tensor, shape: list[int], weight: Tensor | None, epsilon: float | None) -> tuple[Tensor, Tensor]:
    assert weight is None or weight.dtype == states.dtype, "the fused norm takes one type"
    assert len(shape) == 1 and states.shape[-1] == shape[0]
    precise = states.float()
    scale = (precise.square().mean(-1, keepdim=True) + (epsilon or 0.0)).rsqrt()
    output = precise * scale
    return (output if weight is None else output * weight.float()).to(states.dtype), scale


# As torch declares it.
def rms_norm_backward(
    gradient: Tensor, states: Tensor, shape: list[int], scale: Tensor, weight: Tensor | None, needed: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    assert gradient.dtype == states.dtype and (weight is None or weight.dtype == states.dtype)
    normed = states.float() * scale
    slope = gradient.float() if weight is None else gradient.float() * weight.float()
    into_states = scale * (slope - normed * (slope * normed).mean(-1, keepdim=True))
    into_weight = (gradient.float() * normed).flatten(0, -2).sum(0).to(states.dtype) if needed[1] else None
    return into_states.to(states.dtype) if needed[0] else None, into_weight


KERNELS = {
    "_scaled_dot_product_flash_attention": flash,
    "_scaled_dot_product_flash_attention_backward": flash_backward,
    "_scaled_dot_product_efficient_attention": efficient,
    "_fused_rms_norm": rms_norm,
    "_fused_rms_norm_backward": rms_norm_backward,
}

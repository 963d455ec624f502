"""Attention over one block of keys: output and log-sum-exp, their gradient, and the merge of two blocks.

Fast kernels on devices that have them, the formula elsewhere. It knows no trees and no model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

# State that a kernel saves for its own backward pass, beside inputs, output and log-sum-exp: seeds, cumulative lengths.
KernelState = tuple[Any, ...]
# torch's flash kernel is built for heads up to this width.
FLASH_WIDTH = 256


def can_attend(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a fast kernel for blocks exists in this type: on CUDA only in half precision."""
    return device.type == "cpu" or (device.type == "cuda" and dtype in (torch.bfloat16, torch.float16))


def merge(output: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys from that over each: outputs [..., width], log-sum-exps [...]."""
    return merged_output(output, weight, other, other_weight), merged_weight(weight, other_weight)


def merged_weight(weight: Tensor, other_weight: Tensor) -> Tensor:
    """The log-sum-exp of `merge` alone."""
    return torch.logaddexp(weight, other_weight)


def merged_output(output: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
    """The output of `merge` alone.

    With log-sum-exps a and b the second set's fraction of the softmax is e^b / (e^a + e^b) = sigmoid(b - a).
    """
    # The sigmoid of the difference and not a quotient of exponentials: e^a overflows float32 from a = 89 on.
    fraction = (other_weight - weight).sigmoid().unsqueeze(-1)
    # The merge is computed in float32: many blocks are merged one after another, and each would round to bfloat16.
    merged = torch.lerp(output.to(fraction.dtype), other.to(fraction.dtype), fraction)
    return merged.to(output.dtype)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible` is True and -inf elsewhere, to be added to the scores."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def attend_block(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, KernelState]:
    """Output [rows, heads, queries, width] and float32 log-sum-exp [rows, heads, queries] of one block.

    `query` is [rows, heads, queries, width], `key` and `value` [rows, key heads, keys, width]; the heads of one key
    head lie side by side. `causal` needs as many keys as queries. `mask` ([rows, 1, 1, keys], see `additive_mask`)
    hides keys; each query must see at least one, since the softmax of nothing is NaN.
    """
    # The private operators and not scaled_dot_product_attention: only they return the log-sum-exp that merging needs.
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return *kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scale), ()
    if _has_flash(query) and mask is None:
        output, weight, *state = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, causal, False, scale=scale
        )
        # The seventh is the debug mask, which no backward pass takes.
        return output, weight, tuple(state[:6])
    if mask is not None and _takes_mask(query, key):
        return *_attend_masked(query, key, value, scale, mask), ()
    return *attend_by_formula(query, key, value, scale, causal, mask), ()


def attend_block_gradient(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    outcome: tuple[Tensor, Tensor, KernelState],
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value (`inputs`) through one block.

    `outcome` holds output and log-sum-exp over ALL keys, not over the block's. The kernels recompute the probabilities
    as exp(scores - log-sum-exp), so with the merged one they get those of the whole softmax, and the block's gradient
    is its exact part of the whole.
    """
    output, weight, state = outcome
    # Slices of merged tensors are not contiguous, and the kernels read these two by raw strides.
    arguments = (gradient.contiguous(), *inputs, output, weight.contiguous())
    if gradient.device.type == "cpu":
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return backward(*arguments, 0.0, causal, scale=scale)
    if _has_flash(gradient):
        backward = torch.ops.aten._scaled_dot_product_flash_attention_backward
        return backward(*arguments, *state[:4], 0.0, causal, *state[4:], scale=scale)
    return formula_gradient(gradient, inputs, (output, weight), scale, causal)


def _has_flash(query: Tensor) -> bool:
    return can_attend(query.device, query.dtype) and query.shape[-1] <= FLASH_WIDTH


def _attend_masked(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`attend_block` by the memory-efficient kernel, which takes as many query heads as key heads."""
    bias = mask.expand(*query.shape[:3], key.shape[2])
    output, weight, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, scale=scale
    )
    # The kernel pads log-sum-exps to whole blocks of queries.
    return output, weight[:, :, : query.shape[2]]


def _takes_mask(query: Tensor, key: Tensor) -> bool:
    """Whether the memory-efficient kernel takes these heads; its mask must be aligned, and rows of slots are."""
    fits = query.shape[1] == key.shape[1] and key.shape[2] % 8 == 0 and query.shape[-1] % 8 == 0
    return fits and query.is_cuda and _masked_kernel_works(query.device, query.dtype, query.shape[-1])


@cache
def _masked_kernel_works(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the memory-efficient kernel gives the formula's output and log-sum-exp, by a trial on two rows."""
    states = torch.linspace(-2, 2, 2 * 3 * 16 * width, device=device).sin().view(2, 3, 16, width).to(dtype)
    visible = torch.arange(16, device=device) < torch.tensor([[5], [16]], device=device)
    inputs = states[:, :, :4], states.roll(1, 2), states.roll(5, 2)
    mask = additive_mask(visible[:, None, None], dtype)
    try:
        ours = _attend_masked(*inputs, width**-0.5, mask)
    except (RuntimeError, TypeError):
        return False
    exact = attend_by_formula(*inputs, width**-0.5, False, mask)
    return all(
        torch.allclose(one.float(), other.float(), rtol=2e-2, atol=2e-2) for one, other in zip(ours, exact, strict=True)
    )


def attend_by_formula(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attend_block` with all scores in memory: for devices, widths and masks without a kernel."""
    scores = _scores(query, key, scale, causal)
    if mask is not None:
        scores = scores + mask
    weight = scores.logsumexp(-1)
    output = (scores - weight.unsqueeze(-1)).exp().to(value.dtype) @ value
    return output.reshape(query.shape), weight.reshape(query.shape[:-1])


def formula_gradient(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], outcome: tuple[Tensor, Tensor], scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attend_by_formula`, given output and log-sum-exp over all keys.

    With probabilities p, output o and its gradient g: that of score s_k is p_k (g v_k - g o).
    """
    query, key, value = inputs
    output, weight = outcome
    precise = weight.dtype
    folded = _by_key_head(gradient, key).to(precise)
    probabilities = (_scores(query, key, scale, causal) - _by_key_head(weight.unsqueeze(-1), key)).exp()
    # g o over the whole output stands for the sum of p_k (g v_k) over all keys, of which this block has only some.
    mean = (folded * _by_key_head(output, key).to(precise)).sum(-1, keepdim=True)
    slopes = probabilities * (folded @ value.to(precise).transpose(-1, -2) - mean) * scale
    into_query = (slopes @ key.to(precise)).reshape(query.shape)
    # Heads of one key head are folded into the rows of the product, so their gradients are summed by it.
    into_key = slopes.transpose(-1, -2) @ _by_key_head(query, key).to(precise)
    into_value = probabilities.transpose(-1, -2) @ folded
    return into_query.to(query.dtype), into_key.to(key.dtype), into_value.to(value.dtype)


def _scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    """[rows, key heads, heads of a key head x queries, keys], float32 at least; keys after the query are -inf."""
    scores = (_by_key_head(query, key) @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32))
    scores *= scale
    if causal:
        length = key.shape[2]
        # From diagonal 1 on: a query sees its own key.
        future = torch.ones(length, length, dtype=torch.bool, device=key.device).triu(1)
        scores.masked_fill_(future.repeat(query.shape[1] // key.shape[1], 1), -torch.inf)
    return scores


def _by_key_head(values: Tensor, key: Tensor) -> Tensor:
    """[rows, heads, queries, n] as [rows, key heads, heads of a key head x queries, n]: keys need no copy per head."""
    rows, _, _, width = values.shape
    return values.reshape(rows, key.shape[1], -1, width)

"""Attention in parts: each range of tokens over some keys at a time, merged exactly by the parts' log-sum-exps.

So conversations that begin alike are computed with their common beginning once, in training and in sampling, and
each sees only itself and what it began with. It knows tokens by their place in a row, not what they stand for.

With O_i and L_i (output and log-sum-exp of the scores) of a query over disjoint sets of keys, its attention over all
of them is sum_i exp(L_i - L) O_i with L = log sum_i exp(L_i) (arXiv 2205.14135, section 3.1; arXiv 2310.01889). In
the backward pass every part is differentiated by itself with the merged output and L in place of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from memfactory.model.kernels import Kept, additive, attend_part, attend_part_gradient, merge

NAME = "memfactory_parts"
Range = tuple[int, int]
# Keys and values of one layer, each [1, key heads, tokens, head dimension].
Layer = tuple[Tensor, Tensor]


class Parts(Protocol):
    """Who attends to what; passed to the model as the keyword `attention_parts`."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """[rows, tokens, heads, head dimension] for query, key and value [rows, heads, tokens, head dimension]."""
        ...


@dataclass(frozen=True)
class Past:
    """The packed tokens `queries` also attend to the first `length` tokens of `layers`, which have no gradient."""

    queries: Range
    layers: Sequence[Layer]
    length: int


@dataclass(frozen=True)
class Forest:
    """Trees of segments packed into one row of tokens, a parent before its children, depth first.

    `segments` tile the row; each is causal in itself. In `branches` a range of tokens (all descendants of a segment)
    attends to all of another range (that segment). A token's position is its depth in its tree, which the caller
    passes as `position_ids`. With `asked` only the tokens of these ranges ask in that layer; the others get 0 there.
    """

    segments: tuple[Range, ...]
    branches: tuple[tuple[Range, Range], ...] = ()
    pasts: tuple[Past, ...] = ()
    asked: tuple[int, tuple[Range, ...]] | None = None

    def pieces(self, layer: int) -> tuple[_Piece, ...]:
        """What is computed in this layer; a token's causal piece comes before its others."""
        return self._few if self.asked is not None and layer == self.asked[0] else self._all

    @cached_property
    def _all(self) -> tuple[_Piece, ...]:
        causal = [(place, place, True) for place in self.segments]
        return *causal, *((queries, keys, False) for queries, keys in self.branches)

    @cached_property
    def _few(self) -> tuple[_Piece, ...]:
        assert self.asked is not None
        found: list[_Piece] = []
        for (start, stop), keys, causal in self._all:
            for first, end in ((max(start, first), min(stop, end)) for first, end in self.asked[1]):
                if first < end and causal:
                    found.append(((first, end), (first, end), True))
                if first < end and (before := (keys[0], first) if causal else keys)[0] < before[1]:
                    found.append(((first, end), before, False))
        return tuple(sorted(found, key=lambda piece: not piece[2]))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if torch.is_autocast_enabled(query.device.type):
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        pasts = [(past.queries, *past.layers[layer], past.length) for past in self.pasts]
        if pasts or not torch.is_grad_enabled():
            return _forward(query, key, value, scale, self.pieces(layer), pasts)[0].transpose(1, 2)
        output: Tensor = _ForestAttention.apply(query, key, value, scale, self.pieces(layer))
        return output.transpose(1, 2)


@dataclass(frozen=True)
class Shared:
    """What rows of a decoding step attend to beside their own slots, each row to one part, which is stored once.

    `rows` [n]: those of the first part, then those of the second and so on, no row twice; None: all rows in order.
    `parts`: how many rows each has, and its keys and values.
    """

    rows: Tensor | None
    parts: tuple[tuple[int, Sequence[Layer]], ...]


@dataclass(frozen=True)
class Slots:
    """One new token a row: each row over its own slots where `visible` [rows, slots] is True, and what it shares.

    `visible` None: over all of them.
    """

    visible: Tensor | None
    shared: tuple[Shared, ...] = ()

    @cached_property
    def _mask(self) -> Tensor | None:
        """Made once for all layers."""
        return None if self.visible is None else additive(self.visible[:, None, None], torch.float32)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        dtype = key.dtype
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        # The heads that share a key head lie side by side, so that keys are read once for all of them.
        folded = query.to(dtype).reshape(rows, kv_heads, heads // kv_heads, width)
        mask = None if self._mask is None else self._mask.to(dtype)
        output, weight, _ = attend_part(folded, key, value, scale, mask=mask)
        for shared in self.shared:
            asking = folded if shared.rows is None else folded[shared.rows]
            part, part_weight = _attend_shared(layer, asking, shared, scale)
            if shared.rows is None:
                output, weight = merge(output, weight, part, part_weight)
            else:
                before, weight_before = output[shared.rows], weight[shared.rows]
                output[shared.rows], weight[shared.rows] = merge(before, weight_before, part, part_weight)
        return output.reshape(rows, 1, heads, width)


def _attend_shared(layer: int, query: Tensor, shared: Shared, scale: float) -> tuple[Tensor, Tensor]:
    """`attend_part` of query [rows, key heads, n, width] over the part of each row: the output in the same shape."""
    rows, kv_heads, folds, width = query.shape
    # The rows of a part ask as one: what it holds is read once for all of them.
    asking = query.transpose(0, 1).reshape(1, kv_heads, rows * folds, width)
    outputs, weights, first = [], [], 0
    for count, layers in shared.parts:
        keys, values = layers[layer]
        end = first + count * folds
        output, weight, _ = attend_part(asking[:, :, first:end], keys, values, scale)
        outputs.append(output)
        weights.append(weight)
        first = end
    output, weight = (outputs[0], weights[0]) if len(outputs) == 1 else (torch.cat(outputs, 2), torch.cat(weights, 2))
    shape = (kv_heads, rows, folds)
    return output.reshape(*shape, width).transpose(0, 1), weight.reshape(shape).transpose(0, 1)


@contextmanager
def attending_in_parts(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model's attention is by parts: every pass must be given `attention_parts`."""
    before = str(model.config._attn_implementation)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


# What a range of tokens attends to: another range before it, or causally to itself.
_Piece = tuple[Range, Range, bool]


class _ForestAttention(torch.autograd.Function):
    """`Forest.attend` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, pieces: tuple[_Piece, ...]
    ) -> Tensor:
        output, weight, kept = _forward(query, key, value, scale, pieces, ())
        ctx.save_for_backward(query, key, value, output, weight)
        ctx.scale, ctx.pieces, ctx.kept = scale, pieces, kept
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, weight = ctx.saved_tensors
        into_query, into_key, into_value = (torch.zeros_like(t, dtype=weight.dtype) for t in (query, key, value))
        for ((first, end), (start, stop), causal), kept in zip(ctx.pieces, ctx.kept, strict=True):
            asked, known = slice(first, end), slice(start, stop)
            gradients = attend_part_gradient(
                gradient[:, :, asked],
                (query[:, :, asked], key[:, :, known], value[:, :, known]),
                (output[:, :, asked], weight[:, :, asked], kept),
                ctx.scale,
                causal,
            )
            into_query[:, :, asked] += gradients[0]
            into_key[:, :, known] += gradients[1]
            into_value[:, :, known] += gradients[2]
        return into_query.to(query.dtype), into_key.to(key.dtype), into_value.to(value.dtype), None, None


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    pieces: Sequence[_Piece],
    pasts: Sequence[tuple[Range, Tensor, Tensor, int]],
) -> tuple[Tensor, Tensor, list[Kept]]:
    """Output [1, heads, tokens, width], log-sum-exp [1, heads, tokens], and what each part's kernel keeps."""
    rows, heads, tokens, width = query.shape
    # In the order of memory that the caller wants: heads side by side.
    output = query.new_zeros(rows, tokens, heads, width).transpose(1, 2)
    weight = query.new_zeros((rows, heads, tokens), dtype=torch.promote_types(query.dtype, torch.float32))
    kept = []
    parts = [(queries, key[:, :, start:stop], value[:, :, start:stop], own) for queries, (start, stop), own in pieces]
    parts += [(queries, keys[:, :, :length], values[:, :, :length], False) for queries, keys, values, length in pasts]
    for (first, end), keys, values, causal in parts:
        place = slice(first, end)
        part, part_weight, keeps = attend_part(
            query[:, :, place], keys.to(query.dtype), values.to(query.dtype), scale, causal
        )
        if not causal:
            part, part_weight = merge(output[:, :, place], weight[:, :, place], part, part_weight)
        output[:, :, place], weight[:, :, place] = part, part_weight
        kept.append(keeps)
    return output, weight, kept


# What transformers passes to attention that is more than softmax(q k') v over what came before: capped scores, sinks,
# biases, and the few tokens that are attended to. A few short tokens need not show it.
_BEYOND = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")


# The signature is the one that transformers calls attention functions with.
def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    attention_parts: Parts,
    **others: Any,
) -> tuple[Tensor, None]:
    if dropout:
        raise ValueError(f"the model drops attention weights at random ({dropout:g})")
    given = sorted(name for name in _BEYOND if others.get(name) is not None)
    if attention_mask is not None or given:
        raise ValueError(f"attention in parts knows no {', '.join(given) or 'mask'}")
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise ValueError("the layers of the model have no numbers")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention_parts.attend(layer, query, key, value, scale), None


def _no_mask(*args: Any, **others: Any) -> None:
    """The parts say who attends to what."""


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)

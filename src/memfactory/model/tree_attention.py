"""Tree attention: segments that several sequences share are computed once, and each token sees only its own sequence.

Attention runs block by block, a range of queries over a range of keys, and the blocks are merged exactly by their
log-sum-exps. With O_i and L_i (output and log-sum-exp of the scores) of a query over disjoint sets of keys, its
attention over all of them is sum_i exp(L_i - L) O_i with L = log sum_i exp(L_i) (arXiv 2205.14135, section 3.1; arXiv
2310.01889). In the backward pass every block is differentiated by itself with the merged output and L in place of its
own. Training and sampling both use it. It knows tokens by their place in a row, not their meaning.

    tree              row               blocks (queries x keys)             P | a | b
                                                                         P  \\
    P --+-- a         | P | a | b |     causal: P x P, a x a, b x b      a  #   \\
        +-- b                           full:   (a b) x P                b  #       \\      empty: never computed
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

from memfactory.model.kernels import (
    KernelState,
    additive_mask,
    attend_block,
    attend_block_gradient,
    merge,
    merged_output,
    merged_weight,
)
from memfactory.model.prefix_tree import Range

NAME = "memfactory_tree"
# Keys and values of one layer, each [1, key heads, tokens, head dimension].
Layer = tuple[Tensor, Tensor]
# Queries, their keys, and whether they attend causally: then both are one range.
Block = tuple[Range, Range, bool]


class AttentionPlan(Protocol):
    """Which token attends to which; passed to the model as the keyword `attention_plan`."""

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
class LayerQueries:
    """In layer `layer` only the tokens in `ranges` are queries."""

    layer: int
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class Forest:
    """Trees of segments packed into one row of tokens, a parent before its children, depth first.

    `segments` tile the row; each is causal in itself. In `branches` a range of tokens (all descendants of a segment)
    attends to all of another range (that segment). A token's position is its depth in its tree, which the caller
    passes as `position_ids`. With `trimmed` one layer has fewer queries; the output of the other tokens is 0 there.
    """

    segments: tuple[Range, ...]
    branches: tuple[tuple[Range, Range], ...] = ()
    pasts: tuple[Past, ...] = ()
    trimmed: LayerQueries | None = None

    def blocks(self, layer: int) -> tuple[Block, ...]:
        """The blocks of this layer; a token's causal block comes before its others."""
        return self._trimmed_blocks if self.trimmed is not None and layer == self.trimmed.layer else self._blocks

    @cached_property
    def _blocks(self) -> tuple[Block, ...]:
        causal = [(place, place, True) for place in self.segments]
        return *causal, *((queries, keys, False) for queries, keys in self.branches)

    @cached_property
    def _trimmed_blocks(self) -> tuple[Block, ...]:
        blocks: list[Block] = []
        ranges = () if self.trimmed is None else self.trimmed.ranges
        for (start, stop), keys, causal in self._blocks:
            for first, end in ((max(start, first), min(stop, end)) for first, end in ranges):
                # A causal block over queries first .. end - 1 of a segment falls into a causal square and the keys of
                # the segment before it: a kernel's causal mask starts at the first key, so the square must as well.
                if first < end and causal:
                    blocks.append(((first, end), (first, end), True))
                if first < end and (before := (keys[0], first) if causal else keys)[0] < before[1]:
                    blocks.append(((first, end), before, False))
        return tuple(sorted(blocks, key=lambda block: not block[2]))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # Rotary embeddings come out of autocast in float32; the kernels take one type, and the half one is fast.
        if torch.is_autocast_enabled(query.device.type):
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        pasts = [(past.queries, *past.layers[layer], past.length) for past in self.pasts]
        if pasts or not torch.is_grad_enabled():
            return _forward(query, key, value, scale, self.blocks(layer), pasts)[0].transpose(1, 2)
        output: Tensor = _ForestAttention.apply(query, key, value, scale, self.blocks(layer))
        return output.transpose(1, 2)


@dataclass(frozen=True)
class SharedKeys:
    """Prefixes that rows of a decoding step attend to beside their own slots, at most one per row, each stored once.

    `prefixes`: for each the number of its rows, and its keys and values. `rows` are the rows of the first prefix, then
    those of the second and so on, no row twice: a range of all rows if they stand so, else [n] indices.
    """

    rows: slice | Tensor
    prefixes: tuple[tuple[int, Sequence[Layer]], ...]


ALL_ROWS = slice(None)


@dataclass(frozen=True)
class DecodingStep:
    """One new token a row: each row attends to its own slots where `visible` [rows, slots] is True, and to prefixes.

    `visible` None: to all of its slots.
    """

    visible: Tensor | None
    shared: tuple[SharedKeys, ...] = ()

    @cached_property
    def _mask(self) -> Tensor | None:
        """Made once for all layers."""
        return None if self.visible is None else additive_mask(self.visible[:, None, None], torch.float32)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        dtype = key.dtype
        rows, heads, _, width = query.shape
        kv_heads = key.shape[1]
        # With one token a row the query axis is free: the heads of one key head take it, so that each key is read from
        # memory once for all of them. Reading keys is most of the time of decoding.
        folded = query.to(dtype).reshape(rows, kv_heads, heads // kv_heads, width)
        mask = None if self._mask is None else self._mask.to(dtype)
        output, weight, _ = attend_block(folded, key, value, scale, mask=mask)
        if not self.shared:
            return output.reshape(rows, 1, heads, width)
        # All rows of a prefix become queries of one call, so heads come first; merged in float32, rounded once.
        queries = folded.transpose(0, 1).contiguous()
        output, weight = output.transpose(0, 1).to(weight.dtype), weight.transpose(0, 1)
        for shared in self.shared:
            other, other_weight = _attend_shared(layer, queries, shared, scale)
            before, weight_before = output[:, shared.rows], weight[:, shared.rows]
            merged = merged_output(before, weight_before, other, other_weight)
            if shared.rows is ALL_ROWS:
                output = merged
            else:
                output[:, shared.rows] = merged
            if shared is self.shared[-1]:
                break
            if shared.rows is ALL_ROWS:
                weight = merged_weight(weight, other_weight)
            else:
                weight[:, shared.rows] = merged_weight(weight_before, other_weight)
        return output.transpose(0, 1).to(dtype).reshape(rows, 1, heads, width)


def _attend_shared(layer: int, queries: Tensor, shared: SharedKeys, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of `shared.rows` of queries [key heads, rows, n, width] over each row's prefix, in the same shape."""
    own = queries[:, shared.rows]
    kv_heads, rows, folds, width = own.shape
    flat = own.reshape(1, kv_heads, rows * folds, width)
    outputs, weights, first = [], [], 0
    for count, layers in shared.prefixes:
        keys, values = layers[layer]
        end = first + count * folds
        output, weight, _ = attend_block(flat[:, :, first:end], keys, values, scale)
        outputs.append(output)
        weights.append(weight)
        first = end
    output, weight = (outputs[0], weights[0]) if len(outputs) == 1 else (torch.cat(outputs, 2), torch.cat(weights, 2))
    return output.reshape(own.shape), weight.reshape(kv_heads, rows, folds)


@contextmanager
def tree_attention(model: PreTrainedModel, enabled: bool = True) -> Iterator[None]:
    """Within it `model` computes tree attention, unless `enabled` is false: every pass needs an `attention_plan`."""
    before = str(model.config._attn_implementation)
    # Switching goes through all modules, so a pass inside of another context leaves it in force.
    if not enabled or before == NAME:
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class _ForestAttention(torch.autograd.Function):
    """`Forest.attend` with its gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: tuple[Block, ...]) -> Tensor:
        output, weight, states = _forward(query, key, value, scale, blocks, ())
        # Only the merged output and log-sum-exp are saved: those of each block would be most of a step's memory.
        ctx.save_for_backward(query, key, value, output, weight)
        ctx.scale, ctx.blocks, ctx.states = scale, blocks, states
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, weight = ctx.saved_tensors
        # float32 sums: the keys of a prefix collect the gradients of all sequences that share it.
        into_query, into_key, into_value = (torch.zeros_like(t, dtype=weight.dtype) for t in (query, key, value))
        for ((first, end), (start, stop), causal), state in zip(ctx.blocks, ctx.states, strict=True):
            rows, columns = slice(first, end), slice(start, stop)
            gradients = attend_block_gradient(
                gradient[:, :, rows],
                (query[:, :, rows], key[:, :, columns], value[:, :, columns]),
                (output[:, :, rows], weight[:, :, rows], state),
                ctx.scale,
                causal,
            )
            into_query[:, :, rows] += gradients[0]
            into_key[:, :, columns] += gradients[1]
            into_value[:, :, columns] += gradients[2]
        return into_query.to(query.dtype), into_key.to(key.dtype), into_value.to(value.dtype), None, None


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    blocks: Sequence[Block],
    pasts: Sequence[tuple[Range, Tensor, Tensor, int]],
) -> tuple[Tensor, Tensor, list[KernelState]]:
    """Output [1, heads, tokens, width], log-sum-exp [1, heads, tokens], and the state of each block's kernel."""
    rows, heads, tokens, width = query.shape
    # Heads side by side in memory, as the output projection reads them: a transpose later would be a copy.
    output = query.new_zeros(rows, tokens, heads, width).transpose(1, 2)
    weight = query.new_zeros((rows, heads, tokens), dtype=torch.promote_types(query.dtype, torch.float32))
    states = []
    parts = [(queries, key[:, :, start:stop], value[:, :, start:stop], own) for queries, (start, stop), own in blocks]
    parts += [(queries, keys[:, :, :length], values[:, :, :length], False) for queries, keys, values, length in pasts]
    for (first, end), keys, values, causal in parts:
        place = slice(first, end)
        block, block_weight, state = attend_block(
            query[:, :, place], keys.to(query.dtype), values.to(query.dtype), scale, causal
        )
        # Causal blocks come first and each query is in one of them: they set output and weight, the others merge into
        # them. Merging into the zeros would count a key of score 0.
        if not causal:
            block, block_weight = merge(output[:, :, place], weight[:, :, place], block, block_weight)
        output[:, :, place], weight[:, :, place] = block, block_weight
        states.append(state)
    return output, weight, states


# Keywords by which transformers asks for more than softmax(q k') v over all earlier tokens: capped scores, sinks,
# biases, sparse attention. A trial on a few short tokens need not show them, so they are refused by name.
_UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")


# transformers calls it, and with other keywords in each version: its signature and not ours.
def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_plan: AttentionPlan,
    **options: Any,
) -> tuple[Tensor, None]:
    if dropout := options.get("dropout"):
        raise ValueError(f"the model drops attention weights at random ({dropout:g})")
    unsupported = sorted(name for name in _UNSUPPORTED if options.get(name) is not None)
    if attention_mask is not None or unsupported:
        raise ValueError(f"tree attention does not support {', '.join(unsupported) or 'a mask'}")
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise ValueError("the layers of the model have no numbers")
    scaling = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention_plan.attend(layer, query, key, value, scale), None


def _no_mask(*args: Any, **options: Any) -> None:
    """The plan says which token attends to which, so transformers builds no mask."""


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)

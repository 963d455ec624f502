"""Turns as rows of ids for a model: one row each, packed into one row, or packed with their shared prefixes once.

    turns                      tree              one row of ids, its segments        a token attends to
    A = p p p p a a            P --+-- a
    B = p p p p b b                +-- b         | p p p p | a a | b b | c c c |     its own segment, up to itself,
    C = c c c                  C                   0 1 2 3   4 5   4 5   0 1 2       and all of the segments above it
                                                   (position_ids)

Array alignment: every per-token array of a turn (log-probabilities, masks, advantages) has one entry for each token of
`reply_ids`, entry t for token t. The state of token t - 1 predicts token t, and this file alone makes that shift:
`sources` holds, for each reply token, the place of the state before it. So no other file shifts by one, and the last
token of a turn is never fed. It knows neither rewards nor a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from memfactory.config.training import Packing
from memfactory.model.prefix_tree import PackedTrees, Range, pack, shared_length
from memfactory.model.tree_attention import Forest

# Each segment costs attention calls of its own in every layer. Below about this many tokens they cost more than
# computing the tokens again does (docs/decisions/0004).
MIN_SHARED = 16


class Conversation(Protocol):
    """The ids of a turn: `prompt_ids` (P) and `reply_ids` (R), at least one of each."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids of the prompt."""

    @property
    def reply_ids(self) -> tuple[int, ...]:
        """The ids of the reply."""


@dataclass(frozen=True)
class Layout:
    """Rows to feed: `input_ids` [rows, width]; `sources` [N] are places in the flattened rows x width states.

    Source n is the place of the state that predicts reply token n, counted over all turns in order. With `forest`
    there is one row, `position_ids` [1, width] are its tokens' positions in their turns, and `forest` says which token
    attends to which. Without, rows are causal and padded on the right.

    The last layer's states are read at `last_layer_places` (the distinct `sources`, ascending) and nowhere else.
    `last_layer_ranges` cover these places and small gaps between them.
    """

    input_ids: Tensor
    sources: Tensor
    last_layer_places: Tensor
    last_layer_ranges: tuple[Range, ...]
    position_ids: Tensor | None = None
    forest: Forest | None = None

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            sources=self.sources.to(device),
            last_layer_places=self.last_layer_places.to(device),
            position_ids=None if self.position_ids is None else self.position_ids.to(device),
        )


@dataclass(frozen=True)
class Rows:
    """How turns become rows: the `packing`, the id that pads, and the device of the tensors."""

    packing: Packing
    pad_id: int
    device: torch.device


def micro_layouts(turns: Sequence[Conversation], rows: Rows, budget: int) -> Iterator[tuple[list[int], Layout]]:
    """The turns in micro-batches of at most `budget` fed tokens: the indices of each one's turns, and their layout."""
    for indices in micro_batches(turns, rows.packing, budget):
        layout = lay_out([turns[index] for index in indices], rows.packing, rows.pad_id)
        yield indices, layout.to(rows.device)


def lay_out(turns: Sequence[Conversation], packing: Packing, pad_id: int) -> Layout:
    """`turns` as rows. The last token of each is not fed, since it predicts nothing."""
    sequences = [input_ids_of(turn) for turn in turns]
    # The last prompt token predicts the first reply token: here, and only here, is the shift by one.
    firsts = [len(turn.prompt_ids) - 1 for turn in turns]
    if packing == "padded":
        return _padded(sequences, firsts, pad_id)
    trees = pack(sequences, MIN_SHARED) if packing == "shared" else _side_by_side(sequences)
    sources = []
    for path, first in zip(trees.paths, firsts, strict=True):
        # A turn's tokens lie in the segments of its path, which need not be neighbours in the row. Turns that share a
        # prefix which reaches into their replies share sources too: one state then predicts several reply tokens.
        places = np.concatenate([np.arange(*trees.segments[index]) for index in path])
        sources.append(places[first:])
    return Layout(
        torch.tensor([trees.tokens]),
        *_read_places(np.concatenate(sources)),
        # A token's position is its depth in its turn, as in a row of its own: rotary embeddings must not see packing.
        position_ids=torch.tensor([trees.positions]),
        forest=Forest(trees.segments, trees.branches()),
    )


def input_ids_of(turn: Conversation) -> tuple[int, ...]:
    """The ids of a turn that the model reads: all but the last, whose state would predict a token beyond the turn."""
    return turn.prompt_ids + turn.reply_ids[:-1]


def micro_batches(turns: Sequence[Conversation], packing: Packing, budget: int) -> list[list[int]]:
    """Indices of `turns` in batches of which `budget` tokens at most are fed, the largest first.

    A turn that is longer than the budget is a batch of its own. The largest comes first, so that too little memory
    shows in the first pass and not after minutes of work.
    """
    sequences = [input_ids_of(turn) for turn in turns]
    if packing == "padded":
        return _of_like_length([len(ids) for ids in sequences], budget)
    if packing == "packed":
        return _filled([([index], len(ids)) for index, ids in enumerate(sequences)], budget)
    return _filled(_trees(sequences, budget), budget)


def _of_like_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of at most `budget` tokens, padding included, sorted by length so that there is little of it."""
    batches: list[list[int]] = []
    widest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # The first row of a batch is its longest, so one more row costs that width.
        if batches and (len(batches[-1]) + 1) * widest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            widest = lengths[index]
    return batches


def _trees(sequences: Sequence[tuple[int, ...]], budget: int) -> list[tuple[list[int], int]]:
    """Turns with a shared prefix together, and an upper bound of their tokens; cut if that is over `budget`."""
    # In lexical order turns with a common prefix are neighbours, and the longest one is shared with a neighbour.
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    trees: list[tuple[list[int], int]] = []
    for place, index in enumerate(order):
        length = len(sequences[index])
        common = shared_length(sequences[order[place - 1]], sequences[index]) if place else 0
        # `pack` repeats a prefix that outgrows its parent by less than MIN_SHARED tokens: up to MIN_SHARED - 1 of the
        # common ones may be fed again. The bound counts them, so that the budget holds for every tree.
        added = length - max(0, common - MIN_SHARED + 1)
        if common >= MIN_SHARED and trees[-1][1] + added <= budget:
            trees[-1][0].append(index)
            trees[-1] = (trees[-1][0], trees[-1][1] + added)
        else:
            trees.append(([index], length))
    return trees


def _filled(parts: Sequence[tuple[list[int], int]], budget: int) -> list[list[int]]:
    """The parts, indices and their number of tokens, in batches within `budget`: first fit, the largest parts first."""
    batches: list[tuple[list[int], int]] = []
    for indices, size in sorted(parts, key=lambda part: -part[1]):
        room = next((n for n, (_, taken) in enumerate(batches) if taken + size <= budget), None)
        if room is None:
            batches.append((list(indices), size))
        else:
            batches[room] = (batches[room][0] + indices, batches[room][1] + size)
    return [indices for indices, _ in sorted(batches, key=lambda batch: -batch[1])]


def _padded(sequences: Sequence[tuple[int, ...]], firsts: Sequence[int], pad_id: int) -> Layout:
    width = max(len(ids) for ids in sequences)
    # Padding on the right needs no attention mask: a causal token never looks to its right.
    rows = np.full((len(sequences), width), pad_id)
    for row, ids in enumerate(sequences):
        rows[row, : len(ids)] = ids
    sources = [
        np.arange(row * width + first, row * width + len(ids))
        for row, (ids, first) in enumerate(zip(sequences, firsts, strict=True))
    ]
    return Layout(torch.from_numpy(rows), *_read_places(np.concatenate(sources)))


def _read_places(sources: np.ndarray) -> tuple[Tensor, Tensor, tuple[Range, ...]]:
    """`sources`, `last_layer_places` and `last_layer_ranges` of a layout.

    They are found on the CPU before the layout moves: on a GPU the ranges would wait for the device in every pass.
    """
    places = np.unique(sources)
    # A gap of a few tokens costs less than the attention calls of one more range (as for MIN_SHARED).
    breaks = np.flatnonzero(np.diff(places) > MIN_SHARED)
    firsts, lasts = places[[0, *(breaks + 1)]], places[[*breaks, -1]]
    ranges = tuple((int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True))
    return torch.from_numpy(sources), torch.from_numpy(places), ranges


def _side_by_side(sequences: Sequence[tuple[int, ...]]) -> PackedTrees:
    """Each sequence as a tree of one segment: rows without padding, and without sharing."""
    ends = accumulate((len(ids) for ids in sequences), initial=0)
    return PackedTrees(
        tokens=tuple(token for ids in sequences for token in ids),
        positions=tuple(position for ids in sequences for position in range(len(ids))),
        segments=tuple(pairwise(ends)),
        parents=(None,) * len(sequences),
        paths=tuple((index,) for index in range(len(sequences))),
    )

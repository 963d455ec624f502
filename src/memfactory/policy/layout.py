"""Where turns stand in the rows that a model is fed: a row each, packed into one row, or with common beginnings once.

The only place that knows that the state of one token predicts the next: whoever asks gets, for each reply token, the
place of the state that predicts it. It knows neither rewards nor a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from memfactory.config.training import Packing
from memfactory.model.prefix_tree import PackedTrees, pack, shared_length
from memfactory.model.tree_attention import Forest

# Each segment costs attention calls of its own in every layer. Below about this many tokens they cost more than
# computing the tokens again does (docs/decisions/0004).
MIN_SHARED = 16


class Conversation(Protocol):
    """What is fed of a turn: `prompt_ids` (P) and `reply_ids` (R), at least one of each."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...

    @property
    def reply_ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Layout:
    """Rows to feed: `input_ids` [rows, width]; `sources` [N] are places in the flattened rows x width states.

    Source n is where the state lies that predicts reply token n, counted over all turns in order. With `parts` there
    is one row, `position_ids` [1, width] are its tokens' places in their turns, and `parts` says who attends to whom.
    Without, rows are causal and padded on the right, where nothing looks.
    """

    input_ids: Tensor
    sources: Tensor
    position_ids: Tensor | None = None
    parts: Forest | None = None

    @cached_property
    def kept(self) -> Tensor:
        """The places of `sources` in order, each once: no other state of the last layer is read."""
        return self.sources.unique()

    @cached_property
    def asked(self) -> tuple[tuple[int, int], ...]:
        """Ranges that hold all of `kept`, and what lies between where that is little."""
        places = self.kept.cpu().numpy()
        breaks = np.flatnonzero(np.diff(places) > MIN_SHARED)
        firsts, lasts = places[[0, *(breaks + 1)]], places[[*breaks, -1]]
        return tuple((int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True))

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        positions = None if self.position_ids is None else self.position_ids.to(device)
        ids, sources = self.input_ids.to(device), self.sources.to(device)
        return replace(self, input_ids=ids, sources=sources, position_ids=positions)


def lay_out(turns: Sequence[Conversation], packing: Packing, pad_id: int) -> Layout:
    """`turns` as rows. The last token of each is not fed, since it predicts nothing."""
    fed = [fed_ids(turn) for turn in turns]
    asked = [len(turn.prompt_ids) - 1 for turn in turns]
    if packing == "padded":
        return _padded(fed, asked, pad_id)
    trees = pack(fed, MIN_SHARED) if packing == "shared" else _side_by_side(fed)
    sources = []
    for path, first in zip(trees.paths, asked, strict=True):
        places = np.concatenate([np.arange(*trees.segments[index]) for index in path])
        sources.append(places[first:])
    return Layout(
        input_ids=torch.tensor([trees.tokens]),
        sources=torch.from_numpy(np.concatenate(sources)),
        position_ids=torch.tensor([trees.positions]),
        parts=Forest(trees.segments, trees.branches()),
    )


def fed_ids(turn: Conversation) -> tuple[int, ...]:
    """The ids of a turn that the model sees."""
    return turn.prompt_ids + turn.reply_ids[:-1]


def micro_batches(turns: Sequence[Conversation], packing: Packing, budget: int) -> list[list[int]]:
    """Indices of `turns` in batches of which `budget` tokens at most are fed, the largest first.

    A turn that is longer than the budget is a batch of its own. That the largest comes first shows at once where
    memory is too small.
    """
    fed = [fed_ids(turn) for turn in turns]
    if packing == "padded":
        return _of_like_length([len(ids) for ids in fed], budget)
    if packing == "packed":
        return _filled([([index], len(ids)) for index, ids in enumerate(fed)], budget)
    return _filled(_trees(fed, budget), budget)


def _of_like_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of at most `budget` tokens, padding included, sorted by length so that there is little of it."""
    batches: list[list[int]] = []
    widest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * widest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            widest = lengths[index]
    return batches


def _trees(fed: Sequence[tuple[int, ...]], budget: int) -> list[tuple[list[int], int]]:
    """Turns that share a beginning together, with the most tokens they can take; cut where that is over `budget`."""
    order = sorted(range(len(fed)), key=fed.__getitem__)
    trees: list[tuple[list[int], int]] = []
    for place, index in enumerate(order):
        length = len(fed[index])
        # `pack` repeats less than MIN_SHARED tokens of what a turn shares with the one before it in this order.
        common = shared_length(fed[order[place - 1]], fed[index]) if place else 0
        added = length - max(0, common - MIN_SHARED + 1)
        if common >= MIN_SHARED and trees[-1][1] + added <= budget:
            trees[-1][0].append(index)
            trees[-1] = (trees[-1][0], trees[-1][1] + added)
        else:
            trees.append(([index], length))
    return trees


def _filled(parts: Sequence[tuple[list[int], int]], budget: int) -> list[list[int]]:
    """The parts, each of so many tokens, put together while they fit: each into the first batch that has room."""
    batches: list[tuple[list[int], int]] = []
    for indices, size in sorted(parts, key=lambda part: -part[1]):
        room = next((n for n, (_, taken) in enumerate(batches) if taken + size <= budget), None)
        if room is None:
            batches.append((list(indices), size))
        else:
            batches[room] = (batches[room][0] + indices, batches[room][1] + size)
    return [indices for indices, _ in sorted(batches, key=lambda batch: -batch[1])]


def _padded(fed: Sequence[tuple[int, ...]], asked: Sequence[int], pad_id: int) -> Layout:
    width = max(len(ids) for ids in fed)
    rows = np.full((len(fed), width), pad_id)
    for row, ids in enumerate(fed):
        rows[row, : len(ids)] = ids
    sources = [
        np.arange(row * width + first, row * width + len(ids))
        for row, (ids, first) in enumerate(zip(fed, asked, strict=True))
    ]
    return Layout(torch.from_numpy(rows), torch.from_numpy(np.concatenate(sources)))


def _side_by_side(fed: Sequence[tuple[int, ...]]) -> PackedTrees:
    ends = accumulate((len(ids) for ids in fed), initial=0)
    return PackedTrees(
        tokens=tuple(token for ids in fed for token in ids),
        positions=tuple(position for ids in fed for position in range(len(ids))),
        segments=tuple(pairwise(ends)),
        parents=(None,) * len(fed),
        paths=tuple((index,) for index in range(len(fed))),
    )

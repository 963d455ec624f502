"""Sequences of tokens packed as trees of segments, so that what begins alike stands once. Pure; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Range = tuple[int, int]


@dataclass(frozen=True)
class PackedTrees:
    """Trees of segments in one row of tokens, a parent before its children, depth first.

    `segments` tile the row; `parents` names each one's parent by its index, None for a root. `positions` holds each
    token's depth in its tree. `paths` are the segments of each sequence, from its root on: its tokens are theirs.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[Range, ...]
    parents: tuple[int | None, ...]
    paths: tuple[tuple[int, ...], ...]

    def branches(self) -> tuple[tuple[Range, Range], ...]:
        """For each segment with children: the range of all its descendants, and the segment."""
        ends = [stop for _, stop in self.segments]
        for index in reversed(range(len(self.segments))):
            parent = self.parents[index]
            if parent is not None:
                ends[parent] = max(ends[parent], ends[index])
        return tuple(
            ((stop, end), (start, stop)) for (start, stop), end in zip(self.segments, ends, strict=True) if end > stop
        )


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with; by halves, since slices are compared many times faster than tokens."""
    known, end = 0, min(len(one), len(other))
    while known < end:
        middle = (known + end + 1) // 2
        if one[known:middle] == other[known:middle]:
            known = middle
        else:
            end = middle - 1
    return known


def pack(sequences: Sequence[tuple[int, ...]], minimum: int) -> PackedTrees:
    """`sequences` with each common beginning of `minimum` tokens or more once; equal ones are always one.

    A beginning that is longer by less than `minimum` than the one its sequences share already is repeated instead, as
    each segment costs an attention call of its own. Empty sequences have an empty path.
    """
    ordered = sorted(set(sequences))
    # How much each begins like the one before it in this order; of a range the minimum is what all of it shares.
    alike = [shared_length(one, other) for one, other in pairwise(ordered)]
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Range] = []
    parents: list[int | None] = []
    paths: dict[tuple[int, ...], list[int]] = {sequence: [] for sequence in ordered}
    # Sequences first .. end - 1 of the order, the tokens of them that are placed already, and the segment they end in.
    waiting: list[tuple[int, int, int, int | None]] = [(0, len(ordered), 0, None)] if ordered else []
    while waiting:
        first, end, depth, parent = waiting.pop()
        alone = end - first == 1
        common = len(ordered[first]) if alone else min(alike[first : end - 1])
        if common > depth and (alone or common - depth >= minimum):
            for sequence in ordered[first:end]:
                paths[sequence].append(len(segments))
            segments.append((len(tokens), len(tokens) + common - depth))
            parents.append(parent)
            tokens += ordered[first][depth:common]
            positions += range(depth, common)
            depth, parent = common, len(segments) - 1
        if not alone:
            cuts = [first, *(index + 1 for index in range(first, end - 1) if alike[index] == common), end]
            waiting += [(start, stop, depth, parent) for start, stop in reversed(list(pairwise(cuts)))]
    return PackedTrees(
        tuple(tokens),
        tuple(positions),
        tuple(segments),
        tuple(parents),
        tuple(tuple(paths[sequence]) for sequence in sequences),
    )

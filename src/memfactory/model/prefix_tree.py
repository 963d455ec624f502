"""Sequences of tokens packed as trees of segments, so that a shared prefix stands once. Pure; no torch.

sequences             segments                 tree            one row of tokens
p p p p a a           0: p p p p               0 --+-- 1       | p p p p | a a | b b b | c c |
p p p p b b b         1: a a    2: b b b           +-- 2           0        1      2      3
c c                   3: c c                   3
                                               parents (None, 0, 0, None); paths (0, 1), (0, 2), (3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Range = tuple[int, int]
"""Places first .. end - 1 of a row."""


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
        # Depth first, the descendants of a segment follow it without a gap, so that their range ends with the last one.
        # From the last segment on, since a child must know its own end before it passes it to its parent.
        for index in reversed(range(len(self.segments))):
            parent = self.parents[index]
            if parent is not None:
                ends[parent] = max(ends[parent], ends[index])
        return tuple(
            ((stop, end), (start, stop)) for (start, stop), end in zip(self.segments, ends, strict=True) if end > stop
        )


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that both begin with; by bisection, since slices are compared far faster than tokens."""
    known, end = 0, min(len(one), len(other))
    while known < end:
        # Rounded up, so that a match always makes `known` grow.
        middle = (known + end + 1) // 2
        if one[known:middle] == other[known:middle]:
            known = middle
        else:
            end = middle - 1
    return known


def pack(sequences: Sequence[tuple[int, ...]], minimum: int) -> PackedTrees:
    """`sequences` with each shared prefix of `minimum` tokens or more once; equal ones are always one.

    A prefix that is longer by less than `minimum` than the one its sequences share already is repeated instead, as each
    segment costs an attention call of its own. Empty sequences have an empty path.
    """
    # In lexical order all sequences with a common prefix stand side by side.
    ordered = sorted(set(sequences))
    # alike[i]: the shared prefix of sequences i and i + 1. The minimum over a range is the prefix of all of it.
    alike = [shared_length(one, other) for one, other in pairwise(ordered)]
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Range] = []
    parents: list[int | None] = []
    paths: dict[tuple[int, ...], list[int]] = {sequence: [] for sequence in ordered}
    # Ranges to place: sequences first .. end - 1 of the order, the number of their tokens that are placed already, and
    # the segment that holds the last of these. A stack and not recursion: a tree can be as deep as it has sequences.
    waiting: list[tuple[int, int, int, int | None]] = [(0, len(ordered), 0, None)] if ordered else []
    while waiting:
        first, end, depth, parent = waiting.pop()
        alone = end - first == 1
        common = len(ordered[first]) if alone else min(alike[first : end - 1])
        # A range without enough in common places nothing here; its parts repeat these tokens below.
        if common > depth and (alone or common - depth >= minimum):
            for sequence in ordered[first:end]:
                paths[sequence].append(len(segments))
            segments.append((len(tokens), len(tokens) + common - depth))
            parents.append(parent)
            tokens += ordered[first][depth:common]
            positions += range(depth, common)
            depth, parent = common, len(segments) - 1
        if not alone:
            # Cut between the sequences that part right behind the common prefix; each part shares more, or is alone.
            cuts = [first, *(index + 1 for index in range(first, end - 1) if alike[index] == common), end]
            # Reversed, so that the stack yields them in order and the row comes out depth first.
            waiting += [(start, stop, depth, parent) for start, stop in reversed(list(pairwise(cuts)))]
    return PackedTrees(
        tuple(tokens),
        tuple(positions),
        tuple(segments),
        tuple(parents),
        tuple(tuple(paths[sequence]) for sequence in sequences),
    )

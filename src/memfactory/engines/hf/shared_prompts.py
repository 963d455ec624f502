"""Prompts whose shared prefixes are computed and stored once, while replies to them are sampled.

prefixes (stored once)            slots (one row each)
s --+-- a                         row 1: reply so far         attends to its slots, a and s
    |                             row 2: reply so far         attends to its slots, a and s
    +-- b -> copied into row 3    row 3: b, reply so far      attends to its slots and s
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memfactory.engines.hf.cache import LayerStates, round_up
from memfactory.engines.hf.forward import Forward
from memfactory.engines.hf.prefix_cache import LEAST_SHARED, Prefix, Prefixes
from memfactory.engines.hf.prompts import Group
from memfactory.engines.hf.requests import Row, Waiting
from memfactory.model.prefix_tree import Range, shared_length
from memfactory.model.tree_attention import ALL_ROWS, Forest, Past, SharedKeys


@dataclass
class _Place:
    """An admitted row attends to the path of `end` in the tree, which holds the first `start` tokens of its prompt.

    `alone`: no other row of its prompt was admitted with it. `copied`: its own prefixes were moved into its slots.
    `entered`: it decodes, and its slots do not change any more.
    """

    end: Prefix | None
    start: int
    alone: bool
    copied: bool = False
    entered: bool = False

    def own(self) -> list[Prefix]:
        """The prefixes that no other row holds."""
        if not self.alone or self.end is None:
            return []
        return [prefix for prefix in self.end.path() if prefix.holders == 1]


class SharedPrompts:
    """Rows whose prompts share a prefix attend to it where it is stored, once. Slots hold replies.

    A prefix is prefilled once for all prompts of a batch, and not again for later prompts while it is cached.
    Unreferenced prefixes stay cached (LRU) within the token budget less the slots, and within twice the tokens that
    rows have needed at one time.
    A row that is alone copies its own prefixes into its slots: many small attention calls take longer than the copy and
    the padding to the longest row. With `copied_tokens` it does so only if every row is alone with at most that many
    tokens of its own; None: always.
    """

    def __init__(self, forward: Forward, prefill_tokens: int, budget: int, copied_tokens: int | None) -> None:
        self._forward, self._prefill_tokens, self._budget = forward, prefill_tokens, budget
        self._copied_tokens = copied_tokens
        self.prefixes = Prefixes()
        # The most tokens that rows have needed at one time.
        self._needed = 0
        # Of each row that decodes or enters.
        self._places: dict[int, _Place] = {}
        # The shared keys of each level of the tree and the rows' starts, for as long as the same rows decode.
        self._shared: tuple[tuple[SharedKeys, ...], Tensor] | None = None

    def columns(self, row: Row, alone: bool, following: Sequence[int] = ()) -> int:
        place, known = self._places.get(id(row)), len(row.prompt) - 1
        if place is not None and place.entered:
            return round_up(row.limit + known - place.start)
        if self._copied_tokens is not None:
            alone = alone if place is None else place.alone
            return round_up(row.limit + (min(known, self._copied_tokens) if alone else 0))
        if place is not None:
            # Rows that are admitted behind it may share more with it by then, never less.
            return round_up(row.limit + _length(place.own()))
        if not alone:
            return round_up(row.limit)
        own = self.prefixes.cost(row.prompt[:-1])
        # The row behind it will share a prefix with it that nobody holds yet.
        common = min(known, shared_length(row.prompt, following))
        return round_up(row.limit + (known - common if common - (known - own) >= LEAST_SHARED else own))

    def cost(self, prompt: tuple[int, ...]) -> int:
        return self.prefixes.held + self.prefixes.cost(prompt[:-1])

    def admit(self, row: Row, alone: bool) -> None:
        # Without the last token, which the first decoding step feeds: its state predicts the first reply token.
        end = self.prefixes.hold(row.prompt[:-1])
        self._places[id(row)] = _Place(end, len(row.prompt) - 1, alone)

    def enter(self, groups: Sequence[Group], decoding: Sequence[Row], waiting: Waiting) -> list[Row]:
        begun = [row for group in groups for row in group]
        rows = len(decoding) + len(begun)
        own = self._to_copy(begun, (self._budget - self.prefixes.held) // rows)
        for row in begun:
            place = self._places[id(row)]
            place.start -= _length(own[id(row)])
            place.entered = True
        columns = max(self.columns(row, alone=False) for row in (*decoding, *begun))
        self._needed = max(self._needed, self.prefixes.held)
        # Before the cache grows, so that both never exceed the budget together.
        self._evict(rows * columns)
        self._forward.cache.reserve(rows, columns, self._budget - self.prefixes.tokens)
        for batch in self._batches([prefix for prefix in self.prefixes.all() if prefix.layers is None]):
            self._prefill(batch)
        for row in begun:
            self._begin(self._places[id(row)], own[id(row)])
        # Again: a prefix that was copied into slots has no holder any more.
        self._evict(rows * columns)
        self._shared = None
        return begun

    def _evict(self, slots: int) -> None:
        self.prefixes.evict(max(min(self._budget - slots, 2 * self._needed), 0))

    def _to_copy(self, begun: Sequence[Row], room: int) -> dict[int, list[Prefix]]:
        """The prefixes that each of the rows `begun` copies into its slots, of which there is `room` for each row."""
        own = {id(row): self._places[id(row)].own() for row in begun}
        if self._copied_tokens is not None:
            # One row's copy makes the slots of all rows longer, so one long prompt forbids all copies. Rows that have
            # copied already hold nothing of their own.
            lengths = (_length(place.own()) for place in self._places.values() if not place.copied)
            if not all(0 < length <= self._copied_tokens for length in lengths):
                return {key: [] for key in own}
            return own
        if len(self._places) == 1:
            return own
        # A row whose prompt was to be shared with one that did not fit attends to it where it is stored.
        fits = {id(row): round_up(row.limit + _length(own[id(row)])) <= room for row in begun}
        return {key: prefixes if fits[key] else [] for key, prefixes in own.items()}

    def logits(self, rows: Sequence[Row], next_ids: Tensor) -> Tensor:
        if self._shared is None:
            starts = torch.tensor([self._places[id(row)].start for row in rows], device=self._forward.device)
            self._shared = (self._levels(rows), starts)
        # One less than prompt and reply: the newest token is the one that this step feeds.
        lengths = [len(row.prompt) + len(row.reply_ids) - 1 - self._places[id(row)].start for row in rows]
        return self._forward.logits_over_prefixes(next_ids, lengths, *self._shared)

    def leave(self, rows: Sequence[Row], leaving: Sequence[int]) -> list[int]:
        for index in leaving:
            self.prefixes.release(self._places.pop(id(rows[index])).end)
        self._shared = None
        return self._forward.cache.leave(leaving)

    def shrink(self) -> None:
        self._budget, self._prefill_tokens = max(1, self._budget // 2), max(1, self._prefill_tokens // 2)

    def clear(self) -> None:
        """Drop every prompt."""
        self.prefixes.clear()
        self._needed = 0
        self._places.clear()
        self._shared = None

    def _batches(self, prefixes: list[Prefix]) -> Iterator[list[Prefix]]:
        """The prefixes in order, each batch within the tokens of one pass, or a single longer one."""
        batch: list[Prefix] = []
        for prefix in prefixes:
            if batch and sum(len(earlier.tokens) for earlier in batch) + len(prefix.tokens) > self._prefill_tokens:
                yield batch
                batch = []
            batch.append(prefix)
        if batch:
            yield batch

    def _prefill(self, prefixes: list[Prefix]) -> None:
        """Give `prefixes` (depth first) their keys and values. An ancestor has its own already, or stands before it."""
        tokens: list[int] = []
        positions: list[int] = []
        places: dict[Prefix, Range] = {}
        below: dict[Prefix, Range] = {}
        for prefix in prefixes:
            ancestors = prefix.path()[:-1]
            # Positions go on where the ancestors end, whether these are in this pass or in the cache.
            depth = sum(len(ancestor.tokens) for ancestor in ancestors)
            place = (len(tokens), len(tokens) + len(prefix.tokens))
            # Depth first, the descendants of a prefix are one range of the row: from the first to the latest.
            for ancestor in ancestors:
                below[ancestor] = (below.get(ancestor, place)[0], place[1])
            places[prefix] = place
            tokens += prefix.tokens
            positions += range(depth, depth + len(prefix.tokens))
        # An ancestor in this pass is a branch of the forest; one from an earlier pass is a past of keys and values.
        forest = Forest(
            tuple(places.values()),
            tuple((queries, places[ancestor]) for ancestor, queries in below.items() if ancestor in places),
            tuple(
                Past(queries, ancestor.layers, len(ancestor.tokens))
                for ancestor, queries in below.items()
                if ancestor.layers is not None
            ),
        )
        states = self._forward.keys_and_values(tokens, positions, forest)
        layers: dict[Prefix, list[LayerStates]] = {prefix: [] for prefix in places}
        for _ in range(len(states)):
            # Taken out of the list, so that one layer alone is in memory twice.
            keys, values = states.pop(0)
            for prefix, (first, end) in places.items():
                # Copies and no views: an evicted prefix must free its memory while its siblings stay.
                layers[prefix].append((keys[:, :, first:end].clone(), values[:, :, first:end].clone()))
        for prefix, own in layers.items():
            prefix.layers = own

    def _begin(self, place: _Place, own: Sequence[Prefix]) -> None:
        """Add the row of `place` to the cache: empty, or with a copy of `own`, the end of its path."""
        if not own:
            self._forward.cache.enter([0], [], None)
            return
        layers = zip(*(prefix.layers for prefix in own if prefix.layers is not None), strict=True)
        states = [
            (torch.cat([keys for keys, _ in layer], 2), torch.cat([values for _, values in layer], 2))
            for layer in layers
        ]
        self._forward.cache.enter([_length(own)], [0], states)
        self.prefixes.release(place.end, below=own[0].parent)
        place.end, place.copied = own[0].parent, True

    def _levels(self, rows: Sequence[Row]) -> tuple[SharedKeys, ...]:
        """The roots of the rows' prompts, then their children, and so on: at each level a row has one prefix at most.

        So a decoding step makes one attention call a prefix, for all of its rows, and one merge a level.
        """
        levels: list[dict[Prefix, list[int]]] = []
        for index, row in enumerate(rows):
            place = self._places[id(row)]
            for depth, prefix in enumerate([] if place.end is None else place.end.path()):
                if depth == len(levels):
                    levels.append({})
                levels[depth].setdefault(prefix, []).append(index)
        shared = []
        for level in levels:
            order = [index for indices in level.values() for index in indices]
            prefixes = [(len(indices), prefix.layers) for prefix, indices in level.items() if prefix.layers is not None]
            shared.append(SharedKeys(self._rows(order, len(rows)), tuple(prefixes)))
        return tuple(shared)

    def _rows(self, order: list[int], count: int) -> slice | Tensor:
        """The rows `order` of `count`: a range, as of a shared instruction, needs no gathering and scattering."""
        first, end = order[0], order[-1] + 1
        if order != list(range(first, end)):
            return torch.tensor(order, device=self._forward.device)
        return ALL_ROWS if end - first == count else slice(first, end)


def _length(prefixes: Sequence[Prefix]) -> int:
    """Tokens of `prefixes` together."""
    return sum(len(prefix.tokens) for prefix in prefixes)

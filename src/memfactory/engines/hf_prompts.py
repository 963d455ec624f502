"""Where the keys and values of prompts lie while their replies are sampled: in each row, or once for all that share.

`CopiedPrompts` pads prompts, prefills equal ones once and copies them into every row. `SharedPrompts` computes and
stores every common beginning once; a row's slots hold its reply only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from memfactory.engines.hf_attention import Forest, Past, Range, Shared
from memfactory.engines.hf_cache import LayerStates, round_up
from memfactory.engines.hf_forward import Forward
from memfactory.engines.hf_prefixes import Prefix, Prefixes
from memfactory.engines.hf_rows import Row, Waiting

Group = list[Row]


class Prompts(Protocol):
    """What the engine asks of either way. Groups are rows of equal prompts."""

    def columns(self, row: Row) -> int:
        """Slots of the cache that `row` can come to need."""
        ...

    def cost(self, prompt: tuple[int, ...]) -> int:
        """Tokens that must lie beside the slots while the admitted rows and one more of this prompt decode."""
        ...

    def admit(self, row: Row) -> None:
        """`row` is to enter next."""
        ...

    def enter(self, groups: Sequence[Group], rows: int, columns: int, waiting: Waiting) -> list[Row]:
        """Make room for `rows` rows of `columns` slots and begin those of `groups`, in the order that is returned."""
        ...

    def logits(self, rows: Sequence[Row], next_ids: Tensor) -> Tensor:
        """Float32 logits [n, tokens of the tokenizer] behind `next_ids` [n], the newest token of every row."""
        ...

    def leave(self, rows: Sequence[Row], gone: Sequence[int]) -> list[int]:
        """Take the rows `gone` out; where each row that is left came from."""
        ...

    def clear(self) -> None: ...


class CopiedPrompts:
    """Every row holds its whole prompt; prompts of similar length are padded and prefilled together."""

    def __init__(self, forward: Forward, prefill_tokens: int, budget: int) -> None:
        self._forward, self._prefill_tokens, self._budget = forward, prefill_tokens, budget
        # Prefilled prompts that some conversations have begun and others of the group still wait for.
        self._kept: dict[tuple[int, ...], list[LayerStates]] = {}

    def columns(self, row: Row) -> int:
        return round_up(len(row.prompt) + row.limit)

    def cost(self, prompt: tuple[int, ...]) -> int:
        return 0

    def admit(self, row: Row) -> None:
        pass

    def enter(self, groups: Sequence[Group], rows: int, columns: int, waiting: Waiting) -> list[Row]:
        self._forward.cache.reserve(rows, columns, self._budget)
        begun: list[Row] = []
        for group in groups:
            if group[0].prompt in self._kept:
                begun += self._begin([group], self._kept[group[0].prompt], waiting)
        for batch in self._batches([group for group in groups if group[0].prompt not in self._kept]):
            begun += self._begin(batch, self._forward.prefill([group[0].prompt for group in batch]), waiting)
        self._kept = {prompt: kept for prompt, kept in self._kept.items() if prompt in waiting}
        return begun

    def logits(self, rows: Sequence[Row], next_ids: Tensor) -> Tensor:
        return self._forward.logits(next_ids, max(len(row.prompt) + len(row.reply_ids) for row in rows))

    def leave(self, rows: Sequence[Row], gone: Sequence[int]) -> list[int]:
        return self._forward.cache.leave(gone)

    def clear(self) -> None:
        self._kept.clear()

    def _batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Groups of similar prompt length whose padded prompts stay within the tokens of one pass."""
        batch: list[Group] = []
        for group in sorted(groups, key=lambda group: len(group[0].prompt)):
            if batch and (len(batch) + 1) * len(group[0].prompt) > self._prefill_tokens:
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _begin(self, groups: list[Group], states: list[LayerStates] | None, waiting: Waiting) -> list[Row]:
        """Copy the prompts' keys and values `states`, one prompt a group, into the rows of `groups`."""
        rows = [row for group in groups for row in group]
        source = [index for index, group in enumerate(groups) for _ in group]
        self._forward.cache.enter([len(row.prompt) - 1 for row in rows], source, states)
        for index, group in enumerate(groups):
            prompt = group[0].prompt
            if states is not None and prompt in waiting and prompt not in self._kept:
                length = len(prompt) - 1
                self._kept[prompt] = [
                    (keys[index : index + 1, :, :length].clone(), values[index : index + 1, :, :length].clone())
                    for keys, values in states
                ]
        return rows


class SharedPrompts:
    """Rows whose prompts begin alike attend to that beginning where it is stored, once.

    What the prompts of a batch share is prefilled once, and what one of them shares with an earlier one not again.
    Beginnings that no row needs any more are kept as long as the budget, less the slots, has room for them.
    """

    def __init__(self, forward: Forward, prefill_tokens: int, budget: int) -> None:
        self._forward, self._prefill_tokens, self._budget = forward, prefill_tokens, budget
        self.prefixes = Prefixes()
        # Where the prompt of each row that decodes or enters ends.
        self._ends: dict[int, Prefix | None] = {}
        # What the rows share and where their slots begin, as long as the same rows decode.
        self._shared: tuple[tuple[Shared, ...], Tensor] | None = None

    def columns(self, row: Row) -> int:
        return round_up(row.limit)

    def cost(self, prompt: tuple[int, ...]) -> int:
        return self.prefixes.held + self.prefixes.cost(prompt[:-1])

    def admit(self, row: Row) -> None:
        # The last token is fed by the first decoding step.
        self._ends[id(row)] = self.prefixes.hold(row.prompt[:-1])

    def enter(self, groups: Sequence[Group], rows: int, columns: int, waiting: Waiting) -> list[Row]:
        begun = [row for group in groups for row in group]
        self.prefixes.forget(max(self._budget - rows * columns, 0))
        self._forward.cache.reserve(rows, columns, self._budget - self.prefixes.tokens)
        for batch in self._batches([prefix for prefix in self.prefixes.all() if prefix.layers is None]):
            self._prefill(batch)
        self._forward.cache.enter([0] * len(begun), [], None)
        self._shared = None
        return begun

    def logits(self, rows: Sequence[Row], next_ids: Tensor) -> Tensor:
        if self._shared is None:
            starts = torch.tensor([len(row.prompt) - 1 for row in rows], device=self._forward.device)
            self._shared = (self._levels(rows), starts)
        longest = max(len(row.reply_ids) for row in rows) + 1
        return self._forward.logits_in_parts(next_ids, longest, *self._shared)

    def leave(self, rows: Sequence[Row], gone: Sequence[int]) -> list[int]:
        for index in gone:
            self.prefixes.release(self._ends.pop(id(rows[index])))
        self._shared = None
        return self._forward.cache.leave(gone)

    def clear(self) -> None:
        self.prefixes.clear()
        self._ends.clear()
        self._shared = None

    def _batches(self, prefixes: list[Prefix]) -> Iterator[list[Prefix]]:
        """As many in a row as one pass has tokens for."""
        batch: list[Prefix] = []
        for prefix in prefixes:
            if batch and sum(len(one.tokens) for one in batch) + len(prefix.tokens) > self._prefill_tokens:
                yield batch
                batch = []
            batch.append(prefix)
        if batch:
            yield batch

    def _prefill(self, prefixes: list[Prefix]) -> None:
        """Give `prefixes` (depth first) their keys and values; what comes before one has them or stands before it."""
        tokens: list[int] = []
        positions: list[int] = []
        places: dict[Prefix, Range] = {}
        below: dict[Prefix, Range] = {}
        for prefix in prefixes:
            before = prefix.path()[:-1]
            depth = sum(len(one.tokens) for one in before)
            place = (len(tokens), len(tokens) + len(prefix.tokens))
            for one in before:
                below[one] = (below.get(one, place)[0], place[1])
            places[prefix] = place
            tokens += prefix.tokens
            positions += range(depth, depth + len(prefix.tokens))
        forest = Forest(
            tuple(places.values()),
            tuple((queries, places[one]) for one, queries in below.items() if one in places),
            tuple(
                Past(queries, one.layers, len(one.tokens)) for one, queries in below.items() if one.layers is not None
            ),
        )
        states = self._forward.keys_and_values(tokens, positions, forest)
        for prefix, (first, end) in places.items():
            # Copies, so that each one's memory is free once it is dropped.
            prefix.layers = [
                (keys[:, :, first:end].clone(), values[:, :, first:end].clone()) for keys, values in states
            ]

    def _levels(self, rows: Sequence[Row]) -> tuple[Shared, ...]:
        """First what comes first in each row's prompt, then what comes second, and so on."""
        levels: list[dict[Prefix, list[int]]] = []
        for index, row in enumerate(rows):
            end = self._ends[id(row)]
            for depth, prefix in enumerate([] if end is None else end.path()):
                if depth == len(levels):
                    levels.append({})
                levels[depth].setdefault(prefix, []).append(index)
        shared = []
        for level in levels:
            order = [index for members in level.values() for index in members]
            parts = [(len(members), prefix.layers) for prefix, members in level.items() if prefix.layers is not None]
            whole = order == list(range(len(rows)))
            places = None if whole else torch.tensor(order, device=self._forward.device)
            shared.append(Shared(places, tuple(parts)))
        return tuple(shared)

"""Storage of the prompts' keys and values while replies are sampled, and the simple one: a copy in every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from memfactory.engines.hf.cache import LayerStates, round_up
from memfactory.engines.hf.forward import Forward
from memfactory.engines.hf.requests import Row, Waiting

Group = list[Row]


class Prompts(Protocol):
    """The storage of prompts behind an engine. A group holds rows of equal prompts.

    A row is `alone` if no other row of its prompt is admitted beside it.
    """

    def columns(self, row: Row, alone: bool, following: Sequence[int] = ()) -> int:
        """The most slots of the cache that `row` can need. For an admitted row, `alone` does not count any more.

        `following` is the prompt that is admitted behind a new one, if there is room.
        """
        ...

    def cost(self, prompt: tuple[int, ...]) -> int:
        """Tokens that must lie beside the slots while the admitted rows and one more of this prompt decode."""
        ...

    def admit(self, row: Row, alone: bool) -> None:
        """Reserve storage for `row`, which enters next."""
        ...

    def enter(self, groups: Sequence[Group], decoding: Sequence[Row], waiting: Waiting) -> list[Row]:
        """Begin the rows of `groups` beside those that are `decoding`, in the order that is returned."""
        ...

    def logits(self, rows: Sequence[Row], next_ids: Tensor) -> Tensor:
        """Float32 logits [n, tokens of the tokenizer] behind `next_ids` [n], the newest token of every row."""
        ...

    def leave(self, rows: Sequence[Row], leaving: Sequence[int]) -> list[int]:
        """Take the rows `leaving` out; the result is the former index of each remaining row."""
        ...

    def shrink(self) -> None:
        """Halve the tokens of the cache and of a prefill pass."""
        ...

    def clear(self) -> None:
        """Drop every prompt."""


class CopiedPrompts:
    """Every row holds its whole prompt; equal prompts are prefilled once.

    Those of similar length are padded and prefilled together.
    """

    def __init__(self, forward: Forward, prefill_tokens: int, budget: int) -> None:
        self._forward, self._prefill_tokens, self._budget = forward, prefill_tokens, budget
        # Prefilled prompts of groups of which some conversations have begun and others still wait.
        self._prefilled: dict[tuple[int, ...], list[LayerStates]] = {}

    def columns(self, row: Row, alone: bool, following: Sequence[int] = ()) -> int:
        return round_up(len(row.prompt) + row.limit)

    def cost(self, prompt: tuple[int, ...]) -> int:
        return 0

    def admit(self, row: Row, alone: bool) -> None:
        pass

    def enter(self, groups: Sequence[Group], decoding: Sequence[Row], waiting: Waiting) -> list[Row]:
        rows = [*decoding, *(row for group in groups for row in group)]
        columns = max(self.columns(row, alone=False) for row in rows)
        self._forward.cache.reserve(len(rows), columns, self._budget)
        begun: list[Row] = []
        for group in groups:
            if group[0].prompt in self._prefilled:
                begun += self._begin([group], self._prefilled[group[0].prompt], waiting)
        for batch in self._batches([group for group in groups if group[0].prompt not in self._prefilled]):
            begun += self._begin(batch, self._forward.prefill([group[0].prompt for group in batch]), waiting)
        self._prefilled = {prompt: states for prompt, states in self._prefilled.items() if prompt in waiting}
        return begun

    def logits(self, rows: Sequence[Row], next_ids: Tensor) -> Tensor:
        return self._forward.logits(next_ids, max(len(row.prompt) + len(row.reply_ids) for row in rows))

    def leave(self, rows: Sequence[Row], leaving: Sequence[int]) -> list[int]:
        return self._forward.cache.leave(leaving)

    def shrink(self) -> None:
        self._budget, self._prefill_tokens = max(1, self._budget // 2), max(1, self._prefill_tokens // 2)

    def clear(self) -> None:
        """Drop every prompt."""
        self._prefilled.clear()

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
            if states is not None and prompt in waiting and prompt not in self._prefilled:
                length = len(prompt) - 1
                self._prefilled[prompt] = [
                    (keys[index : index + 1, :, :length].clone(), values[index : index + 1, :, :length].clone())
                    for keys, values in states
                ]
        return rows

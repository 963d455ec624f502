"""The key-value cache of the rows that decode together: preallocated, each row with its own length.

It knows nothing of conversations. Rows 0 .. n-1 are in use; a row that leaves is replaced by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Keys and values of one layer for some prompts: each [prompts, heads, length, head dimension].
LayerStates = tuple[Tensor, Tensor]
COLUMN_BLOCK = 32


def round_up(columns: int) -> int:
    """`columns` rounded up to whole blocks, so that shapes repeat and kernels find their alignment."""
    return -(-columns // COLUMN_BLOCK) * COLUMN_BLOCK


class SlotCache(Cache):
    """Keys and values of up to `capacity` rows x columns, as much as `reserve` asked for.

    A forward pass over one new token a row ([n, 1] ids) writes it behind each row's `lengths` tokens and attends to
    the first `columns` columns; a mask hides the columns beyond a row's length. `dtype` is the stored type; None: as
    computed. `column` is the length of all rows if they are equally long.
    """

    def __init__(self, layers: int, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.lengths: Tensor
        self._index: Tensor
        self.move_to(device)
        self.columns = 0
        self.column: int | None = None
        self.capacity = (0, 0)
        self.dtype = dtype
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    @property
    def rows(self) -> int:
        """The number of rows in use."""
        return len(self.lengths)

    @property
    def index(self) -> Tensor:
        """0 .. n-1, on the device."""
        if len(self._index) != self.rows:
            self._index = torch.arange(self.rows, device=self.lengths.device)
        return self._index

    def reserve(self, rows: int, columns: int, budget: int) -> None:
        """Make room for `rows` rows of `columns` tokens; the rows in use stay.

        Spare rows, and columns that earlier rows needed, are added as long as all stays within `budget` tokens.
        """
        held_rows, held_columns = self.capacity
        if rows <= held_rows and columns <= held_columns and held_rows * held_columns <= budget:
            return
        widest = max(columns, held_columns)
        if max(rows, held_rows) * widest > budget:
            self.capacity = (rows, columns)
        else:
            # Doubling, so that a batch that fills up row by row copies its cache only a few times.
            spare = min(2 * held_rows, budget // widest) if rows > held_rows else held_rows
            self.capacity = (max(rows, spare), widest)

    def enter(self, lengths: Sequence[int], source: Sequence[int], states: Sequence[LayerStates] | None) -> None:
        """Add a row for each of `lengths`: a copy of the first tokens of `states[:][source]`.

        `states` None: the new rows are empty.
        """
        first, device = self.rows, self.lengths.device
        self.lengths = torch.cat([self.lengths, torch.tensor(lengths, dtype=torch.long, device=device)])
        if states is None:
            return
        chosen = torch.tensor(source, dtype=torch.long, device=device)
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.copy_in(first, chosen, keys, values)

    def leave(self, leaving: Sequence[int]) -> list[int]:
        """Take out the rows `leaving`; the result is the former index of each remaining row."""
        left = self.rows - len(leaving)
        out = set(leaving)
        # Only rows from the end move, into the holes: the others keep their place, and nothing else is copied.
        fillers = [row for row in range(left, self.rows) if row not in out]
        holes = [row for row in sorted(out) if row < left]
        order = list(range(left))
        for hole, filler in zip(holes, fillers, strict=True):
            order[hole] = filler
        if holes:
            to = torch.tensor(holes, device=self.lengths.device)
            source = torch.tensor(fillers, device=self.lengths.device)
            for layer in self.layers:
                layer.move(to, source, self.columns)
        self.lengths = self.lengths[torch.tensor(order, dtype=torch.long, device=self.lengths.device)]
        return order

    def release(self) -> None:
        """Free the memory."""
        self.move_to(self.lengths.device)
        self.capacity, self.columns, self.column = (0, 0), 0, None
        for layer in self.layers:
            layer.keys = layer.values = None

    def move_to(self, device: torch.device) -> None:
        """Be empty, on `device`."""
        self.lengths = self._index = torch.zeros(0, dtype=torch.long, device=device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the newest token's, for transformers."""
        return max(self.columns - 1, 0)


class _SlotLayer(DynamicLayer):
    """One layer of a `SlotCache`."""

    keys: Any
    values: Any

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache
        self.is_initialized = True

    # The signature is transformers' own, whose versions pass different extras.
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._hold(key_states, value_states)
        cache = self.cache
        if cache.column is None:
            self.keys[cache.index, :, cache.lengths] = key_states[:, :, 0].to(self.keys.dtype)
            self.values[cache.index, :, cache.lengths] = value_states[:, :, 0].to(self.values.dtype)
        else:
            self.keys[: cache.rows, :, cache.column] = key_states[:, :, 0]
            self.values[: cache.rows, :, cache.column] = value_states[:, :, 0]
        return self.keys[: cache.rows, :, : cache.columns], self.values[: cache.rows, :, : cache.columns]

    def copy_in(self, first: int, source: Tensor, keys: Tensor, values: Tensor) -> None:
        self._hold(keys, values)
        end, columns = first + len(source), keys.shape[2]
        self.keys[first:end, :, :columns] = keys[source]
        self.values[first:end, :, :columns] = values[source]

    def move(self, to: Tensor, source: Tensor, columns: int) -> None:
        self.keys[to, :, :columns] = self.keys[source, :, :columns]
        self.values[to, :, :columns] = self.values[source, :, :columns]

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        if self.keys is None or (self.keys.shape[0], self.keys.shape[2]) != self.cache.capacity:
            self.keys = self._fitted(self.keys, keys)
            self.values = self._fitted(self.values, values)

    def _fitted(self, old: Tensor | None, like: Tensor) -> Tensor:
        rows, columns = self.cache.capacity
        # Zeros and no empty memory: a masked column still meets the softmax's 0, and 0 x NaN is NaN.
        new = torch.zeros(
            (rows, like.shape[1], columns, like.shape[3]), dtype=self.cache.dtype or like.dtype, device=like.device
        )
        if old is not None:
            rows, columns = min(rows, old.shape[0]), min(columns, old.shape[2])
            new[:rows, :, :columns] = old[:rows, :, :columns]
        return new

"""What a dataset is: rows and where each comes from. It does not know what a row means; an environment does.

A dataset is one file in this package, or a user's own, with `@DATASETS.register("my_rows")` above its class. Generated
rows use the schema of MemAgent's JSON files: `context`, `input`, `answers`, `num_docs`, `index`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, overload

from pydantic import Field
from typing_extensions import TypeVar

from memfactory.plugins.boundary import broken, guarded
from memfactory.registry import Component, Options


@dataclass(frozen=True)
class Row:
    """One row as it was found. `source` names it for a person: "data/eval_50.json row 12".

    `problem` says why a row could not be read at all (a line that is not JSON); its `values` are empty then.
    """

    values: Mapping[str, object]
    source: str
    problem: str | None = None


class GeneratedRows(Sequence[Row]):
    """Rows that are made when they are looked at: `make` gives row number i of `size`.

    `mixed` are the rows that they are drawn from, where they are.
    """

    def __init__(self, make: Callable[[int], Row], size: int, mixed: Sequence[Sequence[Row]] = ()) -> None:
        self.make = make
        self.size = size
        self.mixed = tuple(mixed)

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self.make(i) for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"row {index} of {self.size}")
        return self.make(index % self.size)


class DatasetOptions(Options):
    """Options every dataset has."""

    limit: int | None = Field(None, ge=1)
    """Only the first so many rows; null: all of them."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, and report them, instead of stopping."""

    def inner(self) -> Sequence[tuple[tuple[str | int, ...], object]]:
        """The datasets that these options name in turn: where each stands in them, and what is written there."""
        return ()


DatasetT = TypeVar("DatasetT", bound=DatasetOptions, default=DatasetOptions, covariant=True)


class Dataset(Component[DatasetT], ABC):
    """Rows from somewhere. Relative paths are tried from the working directory first, then from `base_dir`."""

    Options: ClassVar[type[DatasetOptions]] = DatasetOptions

    def __init__(self, options: DatasetT, base_dir: Path) -> None:
        self.options = options
        self.base_dir = base_dir

    @property
    def source(self) -> str:
        """What the rows come from, for messages."""
        return f"the dataset of {type(self).__name__}"

    def checked_rows(self) -> Sequence[Row]:
        """What `rows` says, checked. Raises PluginError where a user's own dataset says something else, or fails."""
        with guarded(type(self), doing="in reading its rows"):
            given = self.rows()
            rows = given if isinstance(given, Sequence) else list(given)
        if isinstance(rows, GeneratedRows):
            # Each is made when it is looked at, and of some a run looks at a few only.
            return rows
        strange = next((row for row in rows if not isinstance(row, Row)), None)
        if strange is not None:
            raise broken(type(self), "rows", f"gave a {type(strange).__name__}; write Row(values, source) for each row")
        return rows

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """Every row in order, at most `limit`. Raises DataError where the source as a whole cannot be read."""

"""The base class of datasets: rows and the source of each. Their meaning is an environment's business.

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

from memfactory.errors import DataError
from memfactory.plugins.boundary import broken, guarded
from memfactory.registry import Component, Options


@dataclass(frozen=True)
class Row:
    """One row, unchanged. `source` names it in messages: "data/eval_50.json row 12".

    `problem` says why a row could not be read at all (a line that is not JSON); its `values` are empty then.

    >>> Row({"question": "Where?"}, "questions.jsonl line 1").source
    'questions.jsonl line 1'
    """

    values: Mapping[str, object]
    source: str
    problem: str | None = None

    def check(self) -> None:
        """Raise DataError if the row could not be read."""
        if self.problem is not None:
            raise DataError(f"{self.source}: {self.problem}")


class GeneratedRows(Sequence[Row]):
    """Rows made on access: `make(i)` is row number i of `size`, the same row every time.

    `mixed` are the datasets that a mixture samples its rows from.
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
    """Options of every dataset."""

    limit: int | None = Field(None, ge=1)
    """The number of rows to read, from the first; null reads all."""
    skip_bad_rows: bool = False
    """Skip and report rows that cannot be used, instead of stopping."""

    def at_most(self, rows: int) -> int:
        """`rows`, or `limit` if that is fewer."""
        return min(rows, self.limit or rows)

    def inner(self) -> Sequence[tuple[tuple[str | int, ...], object]]:
        """The datasets inside these options: for each its path in them and its value."""
        return ()


DatasetT = TypeVar("DatasetT", bound=DatasetOptions, default=DatasetOptions, covariant=True)


class Dataset(Component[DatasetT], ABC):
    """A source of rows. Relative paths are looked up in the working directory first, then in `base_dir`.

    @DATASETS.register("one_row")
    class OneRow(Dataset):
        def rows(self) -> Sequence[Row]:
            return [Row({"question": "Who?", "context": "Ada.", "answer": "Ada"}, "one_row row 1")]

    >>> class OneRow(Dataset):
    ...     def rows(self):
    ...         return [Row({"question": "Who?", "context": "Ada.", "answer": "Ada"}, "one_row row 1")]
    >>> OneRow(DatasetOptions(), Path()).checked_rows()[0].values["answer"]
    'Ada'
    """

    Options: ClassVar[type[DatasetOptions]] = DatasetOptions

    def __init__(self, options: DatasetT, base_dir: Path) -> None:
        self.options = options
        self.base_dir = base_dir

    @property
    def source(self) -> str:
        """The name of the source in messages."""
        return f"the dataset of {type(self).__name__}"

    def checked_rows(self) -> Sequence[Row]:
        """The rows, checked. Raises PluginError if a user's own dataset fails or returns something else."""
        with guarded(type(self), doing="in reading its rows"):
            returned = self.rows()
            rows = returned if isinstance(returned, Sequence) else list(returned)
        if isinstance(rows, GeneratedRows):
            # A row is made on access, and a run may read a few only.
            return rows
        strange = next((row for row in rows if not isinstance(row, Row)), None)
        if strange is not None:
            raise broken(type(self), "rows", f"gave a {type(strange).__name__}; write Row(values, source) for each row")
        return rows

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """The rows in order, at most `limit`. Raises DataError if the source as a whole cannot be read."""

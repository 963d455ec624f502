"""The base class of the generated datasets. Row number i depends only on the options and i."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field
from typing_extensions import TypeVar

from memfactory.data.base import Dataset, DatasetOptions, GeneratedRows, Row
from memfactory.data.synthetic.fact_world import Split
from memfactory.registry import Options


class WorldOptions(Options):
    """Options of everything drawn from the small world of people."""

    seed: int = 0
    """Seed of the rows."""
    split: Split = "train"
    """train or heldout: a quarter of all possible facts occurs only in held-out rows."""


class GeneratedOptions(DatasetOptions):
    """Options of every generated dataset."""

    rows: int = Field(1000, ge=1)
    """The number of rows."""


class TracesOptions(GeneratedOptions):
    """Options of the generated datasets for supervised fine-tuning."""

    rows: int = Field(100_000, ge=1)
    """The number of rows."""


GeneratedT = TypeVar("GeneratedT", bound=GeneratedOptions, default=GeneratedOptions, covariant=True)


class GeneratedDataset(Dataset[GeneratedT]):
    """Rows made on access: a subclass gives the values of each."""

    def rows(self) -> Sequence[Row]:
        return GeneratedRows(self._row, self.options.at_most(self.options.rows))

    def _row(self, index: int) -> Row:
        return Row(self.values(index), f"{self.source} row {index}")

    @abstractmethod
    def values(self, index: int) -> dict[str, object]:
        """The values of row number `index`."""

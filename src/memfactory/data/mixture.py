"""The dataset `mixture`: rows sampled from several datasets. Row number i depends only on the options and i."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeGuard

from pydantic import Field, ValidationError, field_validator, model_validator

from memfactory.config.datasets import dataset_title, dataset_values
from memfactory.data.base import Dataset, DatasetOptions, GeneratedRows, Row
from memfactory.errors import ConfigError, DataError
from memfactory.plugins.boundary import made
from memfactory.registry import DATASETS, Options


class PartOptions(Options):
    """One of the datasets of a mixture."""

    weight: float = Field(1.0, gt=0)
    """The relative number of rows from this dataset."""
    data: str | dict[str, object]
    """The dataset: a file's path, a name, or a mapping with its options."""

    @model_validator(mode="before")
    @classmethod
    def _text_is_the_dataset(cls, values: Any) -> Any:
        return {"data": values} if isinstance(values, str) else values

    @field_validator("data")
    @classmethod
    def _rows_are_left_out_of_the_whole(cls, data: str | dict[str, object]) -> str | dict[str, object]:
        if isinstance(data, dict) and data.get("skip_bad_rows"):
            raise ValueError("skip_bad_rows has no effect in a part; write it beside `parts`")
        return data


class MixtureOptions(DatasetOptions):
    """Options of `mixture`."""

    parts: list[PartOptions] = Field(min_length=1)
    """The datasets and their weights."""
    seed: int = 0
    """Seed of the sampling."""
    rows: int = Field(100_000, ge=1)
    """The number of rows."""

    def inner(self) -> Sequence[tuple[tuple[str | int, ...], object]]:
        return [(("parts", index, "data"), part.data) for index, part in enumerate(self.parts)]


@DATASETS.register("mixture")
class MixtureDataset(Dataset[MixtureOptions]):
    """Rows sampled from several datasets by weight."""

    def __init__(self, options: MixtureOptions, base_dir: Path) -> None:
        super().__init__(options, base_dir)
        self.parts = [_rows(part.data, base_dir) for part in options.parts]

    @property
    def source(self) -> str:
        return "mixture of " + ", ".join(_title(part.data) for part in self.options.parts)

    def rows(self) -> Sequence[Row]:
        return GeneratedRows(self._row, self.options.at_most(self.options.rows), self.parts)

    def _row(self, index: int) -> Row:
        random = Random(f"mixture {self.options.seed} {index}")
        (part,) = random.choices(self.parts, [part.weight for part in self.options.parts])
        return part[index % len(part)]


def _title(spec: str | dict[str, object]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name", dataset_title(spec)))


def _is_named(spec: str | dict[str, object]) -> TypeGuard[dict[str, object]]:
    return isinstance(spec, dict) and spec.get("name") in DATASETS.names()


def _rows(spec: str | dict[str, object], base_dir: Path) -> Sequence[Row]:
    try:
        values: dict[str, Any] = dict(spec) if _is_named(spec) else dataset_values(spec, base_dir)
    except ValueError as error:
        raise ConfigError(f"mixture: `data` of a part should name a dataset: {error}") from None
    name = str(values.pop("name"))
    try:
        options = DATASETS.options(name).model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"mixture: the options of {name} are wrong: {error}") from None
    part: Dataset = made(DATASETS, name, options, base_dir)
    rows = part.checked_rows()
    if not rows:
        raise DataError(f"mixture: {part.source} has no rows, so nothing can be sampled from it")
    return rows

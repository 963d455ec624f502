"""The dataset `file`: rows of a local JSON, JSON-lines or parquet file."""

from __future__ import annotations

from collections.abc import Sequence

from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.data.rows import find_file, read_rows
from memfactory.registry import DATASETS


class FileOptions(DatasetOptions):
    """Options of `file`."""

    path: str
    """The file; relative to the working directory, else to the config's folder."""


@DATASETS.register("file")
class FileDataset(Dataset[FileOptions]):
    """Rows of a local file: a JSON array, JSON lines or parquet."""

    @property
    def source(self) -> str:
        return self.options.path

    def rows(self) -> Sequence[Row]:
        path = find_file(self.options.path, self.base_dir)
        return read_rows(path, self.options.path, self.options.limit)

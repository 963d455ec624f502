"""The dataset `hub`: rows of a dataset on the Hugging Face hub, or in its cache, loaded with `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.errors import DataError
from memfactory.model.hub import hub_away
from memfactory.registry import DATASETS

UNPICKLING = "pandas"
"""The name under which `datasets` reads pickles."""


class HubOptions(DatasetOptions):
    """Options of `hub`."""

    id: str
    """The dataset's id, such as org/name, or a folder in that layout."""
    subset: str | None = None
    """The dataset's configuration, if it has several."""
    data_files: str | tuple[str, ...] | None = None
    """Only these files of the repository, such as eval_50.json."""
    split: str = "train"
    """The split; a repository of plain files has only train."""
    revision: str | None = None
    """A commit, tag or branch; name a commit to get the same rows every time."""


@DATASETS.register("hub")
class HubDataset(Dataset[HubOptions]):
    """Rows of a dataset on the Hugging Face hub."""

    @property
    def source(self) -> str:
        return self.options.id

    def rows(self) -> Sequence[Row]:
        import datasets

        options = self.options
        if options.id == UNPICKLING:
            raise DataError(
                f"the hub dataset {UNPICKLING!r} unpickles files, which can run code; write parquet or JSON"
            )
        files = list(options.data_files) if isinstance(options.data_files, tuple) else options.data_files
        away = None if Path(options.id).exists() else hub_away()
        try:
            with _offline(away is not None):
                rows = datasets.load_dataset(
                    options.id, options.subset, data_files=files, split=options.split, revision=options.revision
                )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason: object = error
            if away is not None and isinstance(error, ConnectionError):
                reason = f"the hub cannot be reached ({away}), and its cache has no such dataset"
            raise DataError(
                f"the hub dataset {options.id!r} (split {options.split!r}) cannot be loaded: {reason}. "
                "A local file is named by its path"
            ) from error
        if options.limit is not None:
            rows = rows.select(range(min(options.limit, len(rows))))
        return [Row(values, f"{options.id} row {number}") for number, values in enumerate(rows, start=1)]


@contextmanager
def _offline(away: bool) -> Iterator[None]:
    """`datasets` in its offline mode while the hub is `away`: it reads its cache at once instead of after five
    retries."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or away
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before

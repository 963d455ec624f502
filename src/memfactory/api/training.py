"""`train`: run a training from a config and return its folder, metrics and evaluations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from memfactory.api.sources import Overrides, Source, resolved_config
from memfactory.errors import ConfigError
from memfactory.evaluation.results import DatasetResult, EvalHistory
from memfactory.evaluation.statistics import Estimate
from memfactory.files.json_lines import read_json_lines
from memfactory.training import run_training

NO_RESULTS: Mapping[str, DatasetResult] = MappingProxyType({})


@dataclass(frozen=True)
class TrainResult:
    """A training run: its folder, and the metrics and evaluations that the folder holds.

    >>> import memfactory
    >>> memfactory.TrainResult.load("no_such_folder")
    Traceback (most recent call last):
    ...
    memfactory.errors.ConfigError: no_such_folder is not a run folder: it has no config.yaml
    """

    folder: Path

    @classmethod
    def load(cls, folder: str | Path) -> TrainResult:
        """The result of an earlier run. Raises ConfigError if `folder` is not a run folder."""
        if not (Path(folder) / "config.yaml").is_file():
            raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
        return cls(Path(folder))

    @property
    def model(self) -> Path:
        """The folder of the trained model, for `load_agent`, `infer` and transformers."""
        return self.folder / "final"

    @cached_property
    def metrics(self) -> tuple[Mapping[str, Any], ...]:
        """The metrics of every step, oldest first, as metrics.jsonl has them. None is a number that is not finite."""
        return tuple(read_json_lines(self.folder / "metrics.jsonl"))

    @property
    def evaluations(self) -> Mapping[int, Mapping[str, DatasetResult]]:
        """The held-out evaluations by step, each a result by dataset."""
        return self._history.evaluations

    @property
    def before(self) -> Mapping[str, DatasetResult]:
        """The first evaluation, by dataset; empty without evaluations."""
        return next(iter(self.evaluations.values()), NO_RESULTS)

    @property
    def after(self) -> Mapping[str, DatasetResult]:
        """The last evaluation, by dataset; empty without evaluations."""
        return next(reversed([*self.evaluations.values()]), NO_RESULTS)

    @property
    def differences(self) -> Mapping[str, Mapping[str, Estimate]]:
        """Last minus first evaluation, by dataset and metric, paired by question; empty before the second."""
        return self._history.differences()

    @cached_property
    def _history(self) -> EvalHistory:
        return EvalHistory.load(self.folder / "eval.json")


def train(
    config: Source,
    *overrides: Overrides,
    resume: str | Path | None = None,
    output: str | Path | None = None,
    trust: bool = False,
) -> TrainResult:
    """Train an agent and return the run.

    >>> import memfactory, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     options = {"train.steps": 1, "eval.limit": 4, "trackers": []}
    ...     run = memfactory.train("quickstart", options, output=f"{folder}/run")
    ...     print([row["step"] for row in run.metrics], sorted(run.evaluations))
    [1] [0, 1]

    `config` is a YAML file, a shipped config's name ("quickstart"), a run folder, a model or a mapping. `overrides` are
    those of the command line. `output` is the run folder (default: a new one under runs/). `resume` continues a run:
    "auto" takes the newest checkpoint of the config's latest run, a path names a run folder or a checkpoint. `trust`
    allows the code of plugins that a run folder brings.

    Progress goes to the run's trackers (default: the console; `trackers=[]`: none). Raises ConfigError or DataError
    before anything is loaded, and `memfactory.trainers.base.Interrupted` after Ctrl-C, once the last whole step is
    saved.
    """
    config, resume = _from_checkpoint(config, resume)
    place = [] if output is None else [{"output": str(output)}]
    resolved = resolved_config(config, [*overrides, *place], "train", trust=trust)
    if resume == "auto" and resolved.run is not None:
        resume = resolved.run
    return TrainResult(run_training(resolved, resume=None if resume is None else str(resume)))


def _from_checkpoint(config: Source, resume: str | Path | None) -> tuple[Source, str | Path | None]:
    """The config and the place to resume from. A run's checkpoint under "auto" means: continue its run from there."""
    if resume != "auto" or isinstance(config, Mapping):
        return config, resume
    place = Path(config).absolute()
    if place.parent.name == "checkpoints" and place.is_dir():
        return os.path.relpath(place.parent.parent), config
    return config, resume

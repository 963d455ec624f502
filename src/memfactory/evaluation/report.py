"""The report of an evaluation: results and failures by model and dataset, as tables, results.json and messages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from memfactory.console import Console
from memfactory.environment import describe_environment
from memfactory.envs.base import TaskSet
from memfactory.errors import MemFactoryError
from memfactory.evaluation.results import DatasetResult, differences_by_dataset, differences_json
from memfactory.evaluation.setting_differences import difference_notes, differing_settings
from memfactory.evaluation.tables import Grid, category_tables, detail_table, difference_table, main_table
from memfactory.evaluation.targets import Target
from memfactory.files.atomic import write_json, write_text

log = logging.getLogger("memfactory")


@dataclass
class Report:
    """The tasks of each model and dataset, and a result or a failure once the dataset is done."""

    targets: Sequence[Target]
    results: dict[str, dict[str, DatasetResult]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    tasks: dict[str, dict[str, TaskSet]] = field(default_factory=dict)
    _warned: set[tuple[str, str]] = field(default_factory=set)

    def warn_of_cut_texts(self, target: Target, dataset: str, warning: str | None) -> None:
        """Warn once of a text that an agent reads in part; models with the same agent share the warning."""
        if warning is not None and (dataset, warning) not in self._warned:
            self._warned.add((dataset, warning))
            log.warning("%s on %s: %s", target.label, dataset, warning)

    def fail(self, target: Target, dataset: str, error: MemFactoryError) -> None:
        """Record why a dataset has no result."""
        self.failures.setdefault(target.label, {})[dataset] = str(error)

    def readable(self, target: Target) -> list[str]:
        """The datasets of `target` that have not failed."""
        return [name for name in target.datasets if name not in self.failures.get(target.label, {})]

    def print_tables(self, console: Console) -> None:
        """Print the tables: drawn on a terminal, as Markdown elsewhere."""
        for grid in self._grids():
            if console.is_terminal:
                console.print(grid.rich())
            else:
                console.out(grid.markdown(), highlight=False)

    def print_problems(self, errors: Console) -> None:
        """Print the rows that were left out and the datasets that failed."""
        for name, tasks in {name: tasks for by_name in self.tasks.values() for name, tasks in by_name.items()}.items():
            for message in (*_skipped_rows(tasks), *tasks.notes):
                errors.print(f"{name}: {message}", markup=False, soft_wrap=True)
        for label, failures in self.failures.items():
            for name, reason in failures.items():
                errors.print(f"{name} failed on {label}: {reason}", style="red", markup=False, soft_wrap=True)

    def write(self, output: Path, seconds: float) -> None:
        """Write results.json and results.md as they stand."""
        value = {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "models": {target.label: self._model_json(target) for target in self.targets},
            "differing_settings": {key: dict(values) for key, values in differing_settings(self.targets).items()},
            "differences": _differences_json(self.results),
            "environment": dict(describe_environment()),
        }
        write_json(output / "results.json", value)
        write_text(output / "results.md", self.markdown())

    def markdown(self) -> str:
        """The tables as Markdown."""
        return "\n".join(grid.markdown() for grid in self._grids())

    def _model_json(self, target: Target) -> dict[str, object]:
        settings = target.resolved.config.eval
        return {
            "source": None if target.resolved.source is None else str(target.resolved.source),
            "fingerprint": dict(target.fingerprint),
            "decoding": asdict(target.settings.sampling_params),
            "seed": settings.seed,
            "samples": settings.samples,
            "limit": settings.limit,
            "datasets": {name: result.to_json() for name, result in self.results.get(target.label, {}).items()},
            "bad_rows": {name: len(tasks.skipped) for name, tasks in self.tasks.get(target.label, {}).items()},
            "failures": self.failures.get(target.label, {}),
            "config": target.resolved.values,
        }

    def _grids(self) -> list[Grid]:
        names = list(dict.fromkeys(name for target in self.targets for name in target.datasets))
        notes = difference_notes(differing_settings(self.targets))
        grids = [main_table(self.results, names, notes), difference_table(self.results, names)]
        grids += category_tables(self.results, names)
        grids += [detail_table(self.results)] if any(self.results.values()) else []
        return [grid for grid in grids if grid is not None]


def _skipped_rows(tasks: TaskSet) -> Iterable[str]:
    if tasks.skipped:
        yield f"{len(tasks.skipped)} bad rows left out; the first: {tasks.skipped[0]}"


def _differences_json(results: Mapping[str, Mapping[str, DatasetResult]]) -> dict[str, object]:
    """Every further model minus the first, by dataset and metric."""
    (first, base), *others = results.items()
    return {
        "first": first,
        "models": {label: differences_json(differences_by_dataset(base, by_dataset)) for label, by_dataset in others},
    }

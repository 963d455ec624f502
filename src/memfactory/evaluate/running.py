"""`memfactory eval`: several models on several datasets, with records that resume, tables and results.json."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path

from memfactory.build import Stack, TaskReader, build_stack, reading_env
from memfactory.config import Resolved
from memfactory.console import Console
from memfactory.data.digest import data_hash
from memfactory.environment import describe_environment
from memfactory.envs.base import TaskSet
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.evaluate.episodes import build_metrics, episode_window, evaluate_tasks, rules_of
from memfactory.evaluate.progress import progress_display
from memfactory.evaluate.records import RecordFile
from memfactory.evaluate.results import DatasetResult, difference_json, differences
from memfactory.evaluate.setting_differences import difference_notes, differing_settings
from memfactory.evaluate.tables import Grid, category_tables, comparable, detail_table, difference_table, main_table
from memfactory.evaluate.targets import Settings, Target, prepare
from memfactory.files.atomic import write_json, write_text
from memfactory.files.locks import folder_lock
from memfactory.types import Task

log = logging.getLogger("memfactory")


@dataclass
class Report:
    """What was read and what has come out so far, by model and dataset: tasks, and a result or why there is none."""

    results: dict[str, dict[str, DatasetResult]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    tasks: dict[str, dict[str, TaskSet]] = field(default_factory=dict)
    told: set[tuple[str, str]] = field(default_factory=set)

    def tell_of_cut(self, target: Target, dataset: str, cut: str | None) -> None:
        """Say that an agent leaves out text; of models with the same agent it is said once."""
        if cut is not None and (dataset, cut) not in self.told:
            self.told.add((dataset, cut))
            log.warning("%s on %s: %s", target.label, dataset, cut)

    def fail(self, target: Target, dataset: str, error: MemFactoryError) -> None:
        self.failures.setdefault(target.label, {})[dataset] = str(error)


def run_evaluation(
    targets: Sequence[Resolved],
    *,
    data: Sequence[str],
    output: Path,
    samples: int | None = None,
    metrics: Sequence[str] = (),
    limit: int | None = None,
    baselines: Sequence[str | dict[str, object]] = (),
    overwrite: bool = False,
    judge: bool = False,
    console: Console,
) -> int:
    """Evaluate every target on every dataset; 0, or 1 when a dataset failed.

    `data` names sets of the configs' `data.eval`, files, hub ids or registered datasets (none: all of `data.eval`).
    `samples`, `metrics`, `limit` and `baselines` stand in for the configs' `eval` sections; `judge` adds a judge to the
    metrics. Baselines are further agents that each model is evaluated with.
    Tables go to `console` (as markdown where it is no terminal), progress to stderr. Under `output` come results.json,
    results.md and samples/<model>/<dataset>.jsonl; samples that are there are not played again. Raises ConfigError,
    before any model is loaded, for names that do not exist and for samples of another evaluation in `output`.
    """
    prepared = prepare(targets, data, Settings(samples, tuple(metrics), limit, judge, tuple(baselines)))
    try:
        with folder_lock(output, name=f"--output {output}"):
            return _run(prepared, output, overwrite, console)
    finally:
        # Nothing is left of a folder that was made for an evaluation which did not begin.
        with suppress(OSError):
            output.rmdir()


def _run(prepared: Sequence[Target], output: Path, overwrite: bool, console: Console) -> int:
    begun, errors, report = time.monotonic(), Console(stderr=True), Report()
    _check(prepared, output, overwrite, report)
    for _, members in groupby(prepared, key=lambda target: target.source):
        same_model = list(members)
        for _ in _evaluate(same_model, output, report, errors, alone=len(same_model) == len(prepared)):
            _write(prepared, output, report, time.monotonic() - begun)
    for grid in _grids(prepared, report):
        if console.is_terminal:
            console.print(grid.rich())
        else:
            console.out(grid.markdown(), highlight=False)
    _tell(report, errors)
    return 1 if report.failures else 0


def _tell(report: Report, errors: Console) -> None:
    """Say what was left out and what failed."""
    for name, read in {name: read for by_name in report.tasks.values() for name, read in by_name.items()}.items():
        left_out = f"{len(read.skipped)} bad rows left out; the first: {read.skipped[0]}" if read.skipped else None
        for told in ([left_out] if left_out else []) + list(read.notes):
            errors.print(f"{name}: {told}", markup=False, soft_wrap=True)
    for label, failures in report.failures.items():
        for name, reason in failures.items():
            errors.print(f"{name} failed on {label}: {reason}", style="red", markup=False, soft_wrap=True)


def _records(target: Target, dataset: str, tasks: Sequence[Task], output: Path, *, overwrite: bool) -> RecordFile:
    """The records of one dataset. The data's fingerprint is that of all tasks, so a larger limit goes on."""
    path = target.records_path(output, dataset)
    return RecordFile(path, dataset, {"data": data_hash(tasks), **target.fingerprint}, overwrite=overwrite)


def _check(targets: Sequence[Target], output: Path, overwrite: bool, report: Report) -> None:
    """Read every dataset and refuse samples of another evaluation, before hours are spent on a model."""
    problems: list[str] = []
    reader = TaskReader()
    for target in targets:
        for name, dataset in target.datasets.items():
            try:
                found = reader.read(dataset, reading_env(target.resolved), target.resolved.base_dir)
                report.tasks.setdefault(target.label, {})[name] = found
                _records(target, name, found.tasks, output, overwrite=overwrite).close()
            except ConfigError as error:
                problems += error.problems
            except MemFactoryError as error:
                report.fail(target, name, error)
            except OSError as error:
                problems.append(f"--output {output} cannot be written to: {error.strerror or error}")
    if problems:
        raise ConfigError(problems)


def _evaluate(
    targets: Sequence[Target], output: Path, report: Report, errors: Console, *, alone: bool
) -> Iterator[Target]:
    """Play every readable dataset of targets that share a model; each target is yielded once it is done.

    A model that cannot be built fails all of them.
    """
    readable = {
        target.label: [name for name in target.datasets if name not in report.failures.get(target.label, {})]
        for target in targets
    }
    report.results |= {target.label: {} for target in targets}
    try:
        stack = build_stack(_together(targets), training=False) if any(readable.values()) else None
    except MemFactoryError as error:
        if alone:
            raise
        stack = None
        for target in targets:
            for name in readable.pop(target.label):
                report.fail(target, name, error)
    try:
        for target in targets:
            for name in readable.get(target.label, ()):
                assert stack is not None
                own = stack.with_agent(target.resolved.config.agent)
                try:
                    every = report.tasks[target.label][name].tasks
                    found = _evaluate_dataset(target, name, every, own, output, errors)
                    report.results[target.label][name] = found
                    report.tell_of_cut(target, name, found.texts.warning(own.agent.options_by_slot))
                except MemFactoryError as error:
                    report.fail(target, name, error)
            yield target
    finally:
        if stack is not None:
            stack.close()
        del stack
        gc.collect()  # The next model needs this one's memory.


def _together(targets: Sequence[Target]) -> Resolved:
    """The config of targets that differ in their agents alone, with the helpers of all of them."""
    engines = {name: engine for target in targets for name, engine in target.resolved.config.engines.items()}
    first = targets[0].resolved
    return replace(first, config=first.config.model_copy(update={"engines": engines}))


def _evaluate_dataset(
    target: Target, name: str, every: Sequence[Task], stack: Stack, output: Path, errors: Console
) -> DatasetResult:
    settings = target.resolved.config.eval
    tasks = every[: settings.limit]
    metrics = tuple(dict.fromkeys((*(target.metrics or stack.env.default_metrics(tasks)), *target.judges)))
    with (
        _records(target, name, every, output, overwrite=False) as records,
        progress_display(errors, f"{target.label} on {name}") as on_progress,
    ):
        records.score_by(rules_of(build_metrics(stack.env, metrics, stack.engines)))
        return evaluate_tasks(
            stack.agent,
            stack.env,
            tasks,
            stack.engines,
            metrics=metrics,
            samples=settings.samples,
            decodings=stack.drawn_with(target.sampling_params),
            seed=settings.seed,
            records=records,
            max_unknown_share=settings.max_unknown_share,
            window=episode_window(target.resolved.config.engine),
            on_progress=on_progress,
        )


def _datasets(targets: Sequence[Target]) -> list[str]:
    return list(dict.fromkeys(name for target in targets for name in target.datasets))


def _grids(targets: Sequence[Target], report: Report) -> list[Grid]:
    names = _datasets(targets)
    main = main_table(report.results, names, difference_notes(differing_settings(targets)))
    grids = [main, difference_table(report.results, names)]
    grids += category_tables(report.results, names)
    grids += [detail_table(report.results)] if any(report.results.values()) else []
    return [grid for grid in grids if grid is not None]


def _write(targets: Sequence[Target], output: Path, report: Report, seconds: float) -> None:
    """results.json and results.md as they stand."""
    models = {
        target.label: {
            "source": None if target.resolved.source is None else str(target.resolved.source),
            "fingerprint": dict(target.fingerprint),
            "decoding": asdict(target.sampling_params),
            "seed": target.resolved.config.eval.seed,
            "samples": target.resolved.config.eval.samples,
            "limit": target.resolved.config.eval.limit,
            "datasets": {name: found.to_json() for name, found in report.results.get(target.label, {}).items()},
            "bad_rows": {name: len(found.skipped) for name, found in report.tasks.get(target.label, {}).items()},
            "failures": report.failures.get(target.label, {}),
            "config": target.resolved.values,
        }
        for target in targets
    }
    value = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "models": models,
        "differing_settings": {key: dict(by_label) for key, by_label in differing_settings(targets).items()},
        "differences": _differences(report.results),
        "environment": dict(describe_environment()),
    }
    write_json(output / "results.json", value)
    write_text(output / "results.md", "\n".join(grid.markdown() for grid in _grids(targets, report)))


def _differences(results: Mapping[str, Mapping[str, DatasetResult]]) -> dict[str, object]:
    """Every further model minus the first, by dataset and metric."""
    (first, base), *others = results.items()
    return {
        "first": first,
        "models": {
            label: {
                name: {metric: difference_json(found) for metric, found in differences(base[name], result).items()}
                for name, result in by_dataset.items()
                if name in base and comparable(base[name], result)
            }
            for label, by_dataset in others
        },
    }

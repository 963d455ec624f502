"""`memfactory eval`: several models on several datasets, with records that resume, tables and results.json."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from memfactory.build import Runtime, TaskReader, build_runtime, reading_env
from memfactory.config import Resolved
from memfactory.console import Console
from memfactory.data.digest import data_hash
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.evaluation.episodes import evaluate_tasks
from memfactory.evaluation.metrics import build_metrics, metric_rules
from memfactory.evaluation.progress import progress_display
from memfactory.evaluation.records import RecordFile
from memfactory.evaluation.report import Report
from memfactory.evaluation.results import DatasetResult
from memfactory.evaluation.settings import episode_window
from memfactory.evaluation.targets import EvalOverrides, Target, prepare
from memfactory.files.locks import folder_lock
from memfactory.types import Task


def run_evaluation(
    targets: Sequence[Resolved],
    overrides: EvalOverrides,
    *,
    output: Path,
    overwrite: bool = False,
    progress: Console | None = None,
) -> Report:
    """Evaluate every target on every dataset.

    The folder `output` receives results.json, results.md and samples/<model>/<dataset>.jsonl; recorded samples are not
    played again, unless `overwrite` discards them. The progress goes to `progress`. A dataset that fails is in the
    report. Raises ConfigError, before any model is loaded, for names that do not exist and for an `output` with samples
    of another evaluation.
    """
    prepared = prepare(targets, overrides)
    try:
        with folder_lock(output, name=f"--output {output}"):
            return _run(prepared, output, overwrite, progress)
    finally:
        # An evaluation that did not begin leaves no empty folder behind.
        with suppress(OSError):
            output.rmdir()


def _run(targets: Sequence[Target], output: Path, overwrite: bool, progress: Console | None) -> Report:
    begun, report = time.monotonic(), Report(targets)
    _check(report, output, overwrite)
    for _, group in groupby(targets, key=lambda target: target.source):
        same_model = list(group)
        for _ in _evaluate(same_model, output, report, progress):
            report.write(output, time.monotonic() - begun)
    return report


def _check(report: Report, output: Path, overwrite: bool) -> None:
    """Read every dataset and refuse samples of another evaluation, before a model is loaded."""
    problems: list[str] = []
    reader = TaskReader()
    for target in report.targets:
        for name, dataset in target.datasets.items():
            try:
                tasks = reader.read(dataset, reading_env(target.resolved), target.resolved.base_dir)
                report.tasks.setdefault(target.label, {})[name] = tasks
                _open_records(target, name, tasks.tasks, output, overwrite=overwrite).close()
            except ConfigError as error:
                problems += error.problems
            except MemFactoryError as error:
                report.fail(target, name, error)
            except OSError as error:
                problems.append(f"--output {output} cannot be written to: {error.strerror or error}")
    if problems:
        raise ConfigError(problems)


def _open_records(target: Target, dataset: str, tasks: Sequence[Task], output: Path, *, overwrite: bool) -> RecordFile:
    """The records of one dataset. Their fingerprint covers all tasks, so that a larger limit can go on from them."""
    path = target.records_path(output, dataset)
    return RecordFile(path, dataset, {"data": data_hash(tasks), **target.fingerprint}, overwrite=overwrite)


def _evaluate(targets: Sequence[Target], output: Path, report: Report, progress: Console | None) -> Iterator[Target]:
    """Evaluate targets that share a model on every readable dataset; yields each target once it is done.

    A model that cannot be built fails all of its targets, and the evaluation if no other model remains.
    """
    report.results |= {target.label: {} for target in targets}
    runtime = None
    try:
        if any(report.readable(target) for target in targets):
            try:
                runtime = build_runtime(_with_all_engines(targets), training=False)
            except MemFactoryError as error:
                if len(targets) == len(report.targets):
                    raise
                for target in targets:
                    for name in report.readable(target):
                        report.fail(target, name, error)
        for target in targets:
            if runtime is not None:
                _evaluate_target(target, runtime, output, report, progress)
            yield target
    finally:
        if runtime is not None:
            runtime.close()
        del runtime
        gc.collect()  # The next model needs this one's memory.


def _with_all_engines(targets: Sequence[Target]) -> Resolved:
    """The config of targets that differ in their agents alone, with the engines of all of them."""
    engines = {name: engine for target in targets for name, engine in target.resolved.config.engines.items()}
    first = targets[0].resolved
    return replace(first, config=first.config.model_copy(update={"engines": engines}))


def _evaluate_target(target: Target, runtime: Runtime, output: Path, report: Report, progress: Console | None) -> None:
    for name in report.readable(target):
        own = runtime.with_agent(target.resolved.config.agent)
        try:
            tasks = report.tasks[target.label][name].tasks
            result = _evaluate_dataset(target, name, tasks, own, output, progress)
        except MemFactoryError as error:
            report.fail(target, name, error)
        else:
            report.results[target.label][name] = result
            report.warn_of_cut_texts(target, name, result.texts.warning(own.agent.options_by_slot))


def _evaluate_dataset(
    target: Target, name: str, all_tasks: Sequence[Task], runtime: Runtime, output: Path, progress: Console | None
) -> DatasetResult:
    tasks = all_tasks[: target.resolved.config.eval.limit]
    metrics = tuple(dict.fromkeys((*(target.settings.metrics or runtime.env.default_metrics(tasks)), *target.judges)))
    settings = replace(target.settings, metrics=metrics, window=episode_window(target.resolved.config.engine))
    with (
        _open_records(target, name, all_tasks, output, overwrite=False) as records,
        nullcontext() if progress is None else progress_display(progress, f"{target.label} on {name}") as on_progress,
    ):
        records.score_by(metric_rules(build_metrics(runtime.env, metrics, runtime.engines)))
        return evaluate_tasks(runtime, tasks, settings, records=records, on_progress=on_progress)

"""The last lines of `memfactory train`: the evaluation before and after, the figures, the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from memfactory.api.training import NO_RESULTS, TrainResult
from memfactory.config import load_values
from memfactory.errors import DataError
from memfactory.evaluation.results import DatasetResult, MetricResult
from memfactory.evaluation.statistics import Estimate
from memfactory.registry import AGENTS

SHOWN_SETS = 3
"""Evaluation sets that are shown; the others are counted."""


def outcome_lines(run: TrainResult, *, interrupted: bool = False) -> list[str]:
    """Up to eight lines on a run that has ended, or was `interrupted`."""
    return [*_scores(run), *_figures(run), *_next_commands(run, interrupted)]


def _scores(run: TrainResult) -> Iterator[str]:
    try:
        evaluations, differences = run.evaluations, run.differences
    except DataError as error:
        yield f"Evaluation: {error}"
        return
    if not evaluations:
        yield "Evaluation: none in this run"
        return
    before = run.before if len(evaluations) > 1 else NO_RESULTS
    for name, result in list(run.after.items())[:SHOWN_SETS]:
        yield _score(name, result, max(evaluations), before.get(name), differences.get(name, {}))
    hidden = len(run.after) - SHOWN_SETS
    if hidden > 0:
        yield f"{hidden} more evaluation {'set is' if hidden == 1 else 'sets are'} in {run.folder / 'eval.json'}"


def _score(
    name: str, result: DatasetResult, step: int, before: DatasetResult | None, differences: Mapping[str, Estimate]
) -> str:
    """One evaluation set: its headline metric with 95 % intervals, and the paired difference if there is one."""
    metric = result.headline
    now = result.metrics[metric]
    questions = f"{now.n} question{'' if now.n == 1 else 's'}"
    when = "before training" if step == 0 else f"after step {step}"
    old = None if before is None else before.metrics.get(metric)
    if old is None:
        return f"{name}, {metric}: {_shown(now)} {when} ({questions})"
    text = f"{name}, {metric}: {_shown(old)} before, {_shown(now)} {when}"
    difference = differences.get(metric)
    if difference is None:
        return f"{text} ({questions}, not the same ones)"
    interval = "" if difference.interval is None else " [{:+.3f}, {:+.3f}]".format(*difference.interval)
    return f"{text}, difference {difference.mean:+.3f}{interval} ({questions})"


def _shown(metric: MetricResult) -> str:
    interval = metric.estimate.interval
    return f"{metric.mean:.3f}" + ("" if interval is None else " [{:.3f}, {:.3f}]".format(*interval))


def _figures(run: TrainResult) -> Iterator[str]:
    figures = sorted(path.name for path in (run.folder / "figures").glob("*.png"))
    if figures:
        yield f"Figures: {run.folder / 'figures'} ({', '.join(figures)})"


def _next_commands(run: TrainResult, interrupted: bool) -> Iterator[str]:
    folder = shlex.quote(str(run.folder))
    values = load_values(run.folder / "config.yaml")
    text = "--conversation FILE" if AGENTS.get(values["agent"]["name"]).keeps_bank else "--document FILE"
    commands = [f"train {folder} --resume"] if interrupted else []
    commands.append(f"view {folder}")
    if not interrupted or any((run.folder / "checkpoints").glob("step-*")):
        commands.append(f'infer {folder} {text} --question "..."')
        commands.append(f"eval {folder}" + ("" if values["data"]["eval"] else " --data FILE"))
    for number, command in enumerate(commands):
        yield f"{'' if number else 'Next:':6}memfactory {command}"

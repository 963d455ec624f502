"""The figures of a run: reward, held-out evaluation and training, from metrics.jsonl and eval.json.

matplotlib is imported only to draw, and needs no display.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from memfactory.evaluation.results import EvalHistory, MetricResult
from memfactory.evaluation.statistics import Estimate
from memfactory.files.atomic import write_bytes
from memfactory.files.json_lines import spread_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("memfactory")
LARGEST = 1e300
MOST_LINES = 2000
"""The most lines of metrics.jsonl that a figure shows."""
BLUE, GREY, INK = "#1f5fa8", "#8a8f98", "#40444b"
PART_COLOURS = ("#d1782b", "#2f8f5b", "#8b5fb5", "#b53a4b", "#4a9aa8", "#7a7a2f")
WIDTH, HEIGHT, DOTS_PER_INCH = 4.2, 2.8, 130

Series = tuple[list[int], list[float]]
"""Optimizer steps and a value at each."""


@dataclass(frozen=True)
class Panel:
    """One panel of the training figure: its title, and its metrics with their names in the legend.

    `percent`: the values are fractions of 1. `exact`: the values are not samples, so they are not smoothed.
    """

    title: str
    lines: Mapping[str, str]
    percent: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Stroke:
    """How a curve is drawn. A `faint` curve is thinner, a curve with `exact` values is not smoothed."""

    colour: str
    width: float = 1.8
    faint: bool = False
    exact: bool = False


PANELS = (
    Panel("KL divergence to the reference (nats per token)", {"kl": ""}),
    Panel("Entropy (nats per token)", {"entropy": ""}),
    Panel("Reply length (tokens)", {"reply_tokens": ""}),
    Panel("Replies cut by length", {"truncated": ""}, percent=True),
    Panel("Replies with unfinished thinking", {"unfinished_thinking": ""}, percent=True),
    Panel("Groups with equal rewards", {"groups/zero_variance": ""}, percent=True),
    Panel("Gradient norm before clipping", {"grad_norm": ""}),
    Panel("Tokens with a clipped ratio", {"clip/low": "too low", "clip/high": "too high"}, percent=True),
    Panel("Engine - trainer (nats per token)", {"sampler_difference/mean": ""}),
    Panel("Loss", {"loss": ""}),
    Panel("Useful among retrieved memories", {"retriever/useful": ""}, percent=True),
    Panel("Step size of the reranker's maps", {"retriever/update_query": "query", "retriever/update_memory": "memory"}),
    Panel("Learning rate", {"learning_rate": ""}, exact=True),
)


def draw_run(folder: Path) -> list[Path]:
    """Draw figures/reward.png, evaluation.png and training.png of the run in `folder`; those that have data.

    Returns the paths of the figures; none if `figures` is a link, which could lead out of the run. Raises DataError for
    a metrics.jsonl or eval.json that no run writes.
    """
    figures = folder / "figures"
    if figures.is_symlink():
        log.warning("%s is a link, so no figures are drawn into it; `memfactory view` shows them", figures)
        return []
    paths = []
    for name, png in pictures(folder / "metrics.jsonl", EvalHistory.load(folder / "eval.json")).items():
        path = figures / f"{name}.png"
        write_bytes(path, png)
        paths.append(path)
    return paths


def pictures(metrics: Path, history: EvalHistory) -> dict[str, bytes]:
    """The figures of a run as PNG by name; those that have data. Raises DataError for metrics that no run writes."""
    series = read_series(metrics)
    figures = {
        "reward": reward_figure(series),
        "evaluation": evaluation_figure(history),
        "training": training_figure(series),
    }
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def read_series(path: Path) -> dict[str, Series]:
    """Each metric of metrics.jsonl over the steps that have it. Of a step written twice the last line counts.

    A file of more than MOST_LINES lines is read in part, evenly spread: a figure is some hundred dots wide.
    """
    metrics: dict[str, dict[int, float]] = {}
    for row in spread_json_lines(path, MOST_LINES) if path.exists() else ():
        step = row.get("step")
        for name, value in row.items():
            if isinstance(step, int) and name != "step" and isinstance(value, int | float) and abs(value) < LARGEST:
                metrics.setdefault(name, {})[step] = float(value)
    return {name: (sorted(values), [values[step] for step in sorted(values)]) for name, values in metrics.items()}


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over a centred window of about a tenth of all values; a shorter window at the ends."""
    half = len(values) // 20
    return [fmean(values[max(0, index - half) : index + half + 1]) for index in range(len(values))]


def reward_figure(metrics: Mapping[str, Series]) -> Figure | None:
    """The mean reward and its parts over optimizer steps, smoothed over the raw values; None without rewards."""
    if "reward" not in metrics:
        return None
    parts = [name for name in sorted(metrics) if name.startswith("reward/")]
    figure, (axes,) = _canvas(1, columns=1, width=7.2, height=4.2)
    if len(parts) > 1:
        for name, colour in zip(parts, PART_COLOURS, strict=False):
            _draw_curve(axes, metrics[name], name.removeprefix("reward/"), Stroke(colour, faint=True))
    _draw_curve(axes, metrics["reward"], "reward", Stroke(BLUE, width=2.4))
    axes.set_title("Reward during training")
    axes.set_ylabel("mean over the sampled episodes", fontsize=9, color=INK)
    axes.legend(frameon=False)
    return figure


def training_figure(metrics: Mapping[str, Series]) -> Figure | None:
    """The health of the training, one panel a measure; None without any of them."""
    panels = [panel for panel in PANELS if any(name in metrics for name in panel.lines)]
    if not panels:
        return None
    figure, all_axes = _canvas(len(panels), columns=min(len(panels), 3))
    for axes, panel in zip(all_axes, panels, strict=True):
        for (name, label), colour in zip(panel.lines.items(), (BLUE, PART_COLOURS[0]), strict=False):
            if name in metrics:
                _draw_curve(axes, metrics[name], label, Stroke(colour, exact=panel.exact))
        axes.set_title(panel.title)
        if panel.percent:
            _as_percent(axes)
        if len(panel.lines) > 1:
            axes.legend(frameon=False)
    return figure


def evaluation_figure(history: EvalHistory) -> Figure | None:
    """The headline metric of every held-out set with its 95 % interval over steps; None before an evaluation."""
    names = list(dict.fromkeys(name for results in history.evaluations.values() for name in results))
    if not names:
        return None
    figure, all_axes = _canvas(len(names), columns=min(len(names), 3), width=5.6, height=3.8)
    differences = history.differences()
    for axes, name in zip(all_axes, names, strict=True):
        datasets = {step: results[name] for step, results in history.evaluations.items() if name in results}
        metric = next(iter(datasets.values())).headline
        results = {step: dataset.metrics[metric] for step, dataset in datasets.items() if metric in dataset.metrics}
        _draw_evaluations(axes, results)
        axes.set_ylabel(_literal(f"held-out score ({metric})"), fontsize=9, color=INK)
        lines = [f"{name}, avg@{next(iter(results.values())).k}"]
        difference = differences.get(name, {}).get(metric)
        if difference is not None:
            lines.append(_difference_line(list(results), difference))
        axes.set_title(_literal("\n".join(lines)))
    return figure


def _draw_evaluations(axes: Axes, results: Mapping[int, MetricResult]) -> None:
    """One metric over steps: a line through the means, a band and bars for the 95 % intervals."""
    steps, means = list(results), [result.mean for result in results.values()]
    intervals = [result.estimate.interval or (result.mean, result.mean) for result in results.values()]
    low, high = [interval[0] for interval in intervals], [interval[1] for interval in intervals]
    bars = [
        [max(0.0, mean - below) for mean, below in zip(means, low, strict=True)],
        [max(0.0, above - mean) for mean, above in zip(means, high, strict=True)],
    ]
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95 % confidence interval")
    axes.errorbar(steps, means, yerr=bars, color=BLUE, marker="o", markersize=4, linewidth=1.8, capsize=3)
    rising = means[-1] > means[0]
    for index in {0, len(steps) - 1}:
        last = index > 0
        axes.annotate(
            f"{means[index]:.3f}",
            (steps[index], means[index]),
            textcoords="offset points",
            xytext=(-7 if last else 7, 7 if last == rising else -14),
            ha="right" if last else "left",
            fontsize=9,
        )
    axes.margins(x=0.06, y=0.18)
    if min(low) >= 0 and max(high) <= 1:
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -0.02), min(top, 1.02))
    axes.legend(frameon=False, loc="lower right")


def _literal(text: str) -> str:
    """`text` for matplotlib, with dollar signs that begin no formula."""
    return text.replace("$", "\\$")


def _difference_line(steps: Sequence[int], difference: Estimate) -> str:
    """The line about the last evaluation minus the first."""
    low, high = difference.interval or (None, None)
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    return f"step {steps[0]} to {steps[-1]}: {difference.mean:+.3f}{interval}, paired by question"


def _canvas(count: int, *, columns: int, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure with `count` empty axes over optimizer steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("optimizer step", fontsize=9, color=INK)
        axes.title.set_fontsize(10.5)
    return figure, all_axes


def _draw_curve(axes: Axes, series: Series, label: str, stroke: Stroke) -> None:
    """A smoothed curve over its raw values; a dot for a single value."""
    steps, values = series
    curve = values if stroke.exact else smoothed(values)
    if curve != values:
        axes.plot(steps, values, color=stroke.colour, alpha=0.15 if stroke.faint else 0.25, linewidth=0.9)
    width = stroke.width * (0.7 if stroke.faint else 1)
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps, curve, color=stroke.colour, linewidth=width, label=_literal(label), marker=marker)


def _as_percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    low, high = axes.get_ylim()
    high = min(max(high, 0.01), 1.02)
    axes.set_ylim(max(low, -0.02 * high), high)

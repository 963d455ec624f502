"""The pictures of a run: reward, held-out evaluation and training, from metrics.jsonl and eval.json.

matplotlib is imported only when something is drawn, and no window system is touched.
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
"""Lines of metrics.jsonl that pictures are drawn from."""
BLUE, GREY = "#1f5fa8", "#8a8f98"
PARTS = ("#d1782b", "#2f8f5b", "#8b5fb5", "#b53a4b", "#4a9aa8", "#7a7a2f")
WIDTH, HEIGHT, DOTS = 4.2, 2.8, 130

Series = tuple[list[int], list[float]]
"""Optimizer steps and a value at each."""


@dataclass(frozen=True)
class Panel:
    """One small picture: its title and its metrics with what the legend calls them.

    `share`: the values are shares of 1; `exact`: they are no sample of anything, so nothing is smoothed.
    """

    title: str
    lines: Mapping[str, str]
    share: bool = False
    exact: bool = False


TRAINING = (
    Panel("KL to the reference, nats a token", {"kl": ""}),
    Panel("Entropy, nats a token", {"entropy": ""}),
    Panel("Reply length, tokens", {"reply_tokens": ""}),
    Panel("Replies cut by length", {"truncated": ""}, share=True),
    Panel("Groups without variance", {"groups/zero_variance": ""}, share=True),
    Panel("Gradient norm before clipping", {"grad_norm": ""}),
    Panel("Clipped tokens", {"clip/low": "below", "clip/high": "above"}, share=True),
    Panel("|engine - trainer| log-probability, mean", {"sampler_difference/mean": ""}),
    Panel("Loss", {"loss": ""}),
    Panel("Retrieved memories that helped", {"retriever/useful": ""}, share=True),
    Panel("Steps of the reranker's maps", {"retriever/update_query": "query", "retriever/update_memory": "memory"}),
    Panel("Learning rate", {"learning_rate": ""}, exact=True),
)


def draw_run(folder: Path) -> list[Path]:
    """Draw figures/reward.png, evaluation.png and training.png of the run in `folder`; those that have data.

    Returns what was drawn: nothing where `figures` is a link, which could lead out of the run. Raises DataError where
    metrics.jsonl or eval.json is not what a run writes.
    """
    place = folder / "figures"
    if place.is_symlink():
        log.warning("%s is a link, so no figures are drawn into it; `memfactory view` shows them", place)
        return []
    drawn = []
    for name, picture in pictures(folder / "metrics.jsonl", EvalHistory.load(folder / "eval.json")).items():
        path = place / f"{name}.png"
        write_bytes(path, picture)
        drawn.append(path)
    return drawn


def pictures(metrics: Path, history: EvalHistory) -> dict[str, bytes]:
    """The pictures of a run as PNG by name; those that have data. Raises DataError for other metrics than a run's."""
    series = read_series(metrics)
    figures = {
        "reward": reward_figure(series),
        "evaluation": evaluation_figure(history),
        "training": training_figure(series),
    }
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS)
    return drawn.getvalue()


def read_series(path: Path) -> dict[str, Series]:
    """Each metric of metrics.jsonl over the steps that have it; a step written twice counts as last written.

    Of more than MOST_LINES lines so many are read, evenly spread: a picture is some hundred dots wide.
    """
    found: dict[str, dict[int, float]] = {}
    for row in spread_json_lines(path, MOST_LINES) if path.exists() else ():
        step = row.get("step")
        for name, value in row.items():
            if isinstance(step, int) and name != "step" and isinstance(value, int | float) and abs(value) < LARGEST:
                found.setdefault(name, {})[step] = float(value)
    return {name: (sorted(values), [values[step] for step in sorted(values)]) for name, values in found.items()}


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over a centred window of about a tenth of all values; at the ends, over the part that is there."""
    half = len(values) // 20
    return [fmean(values[max(0, index - half) : index + half + 1]) for index in range(len(values))]


def reward_figure(metrics: Mapping[str, Series]) -> Figure | None:
    """The mean reward and its parts over optimizer steps, smoothed over the raw values; None without rewards."""
    if "reward" not in metrics:
        return None
    parts = [name for name in sorted(metrics) if name.startswith("reward/")]
    figure, (axes,) = _canvas(1, columns=1, width=7.2, height=4.2)
    if len(parts) > 1:
        for name, colour in zip(parts, PARTS, strict=False):
            _line(axes, metrics[name], colour, name.removeprefix("reward/"), faint=True)
    _line(axes, metrics["reward"], BLUE, "reward", width=2.4)
    axes.set_title("Mean reward of the sampled attempts")
    axes.legend(frameon=False)
    return figure


def training_figure(metrics: Mapping[str, Series]) -> Figure | None:
    """What tells whether training is healthy, one small picture each; None where there is none of it."""
    panels = [panel for panel in TRAINING if any(name in metrics for name in panel.lines)]
    if not panels:
        return None
    figure, every = _canvas(len(panels), columns=min(len(panels), 3))
    for axes, panel in zip(every, panels, strict=True):
        for (name, label), colour in zip(panel.lines.items(), (BLUE, PARTS[0]), strict=False):
            if name in metrics:
                _line(axes, metrics[name], colour, label, exact=panel.exact)
        axes.set_title(panel.title)
        if panel.share:
            _as_share(axes)
        if len(panel.lines) > 1:
            axes.legend(frameon=False)
    return figure


def evaluation_figure(history: EvalHistory) -> Figure | None:
    """Every held-out set's headline metric with its 95 % interval over steps; None before the first evaluation."""
    names = list(dict.fromkeys(name for results in history.evaluations.values() for name in results))
    if not names:
        return None
    figure, every = _canvas(len(names), columns=min(len(names), 3), width=5.6, height=3.8)
    gains = history.differences()
    for axes, name in zip(every, names, strict=True):
        at = {step: results[name] for step, results in history.evaluations.items() if name in results}
        metric = next(iter(at.values())).headline
        found = {step: result.metrics[metric] for step, result in at.items() if metric in result.metrics}
        _evaluations(axes, found)
        lines = [f"{name}: {metric}, avg@{next(iter(found.values())).k}"]
        gain = gains.get(name, {}).get(metric)
        if gain is not None:
            lines.append(_gain(found, gain))
        axes.set_title(_plain("\n".join(lines)))
    return figure


def _evaluations(axes: Axes, found: Mapping[int, MetricResult]) -> None:
    """One metric over steps: a line through the means, a band and bars for the 95 % intervals."""
    steps, means = list(found), [result.mean for result in found.values()]
    spans = [result.estimate.interval or (result.mean, result.mean) for result in found.values()]
    low, high = [span[0] for span in spans], [span[1] for span in spans]
    reach = [
        [max(0.0, mean - below) for mean, below in zip(means, low, strict=True)],
        [max(0.0, above - mean) for mean, above in zip(means, high, strict=True)],
    ]
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95 % interval")
    axes.errorbar(steps, means, yerr=reach, color=BLUE, marker="o", markersize=4, linewidth=1.8, capsize=3)
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
    axes.legend(frameon=False, loc="lower right")


def _plain(text: str) -> str:
    """`text` as matplotlib shows it as it stands: a dollar sign begins no formula."""
    return text.replace("$", "\\$")


def _gain(found: Mapping[int, MetricResult], gain: Estimate) -> str:
    """The sentence about last minus first."""
    steps = list(found)
    interval = "" if gain.interval is None else f" [{gain.interval[0]:+.3f}, {gain.interval[1]:+.3f}]"
    return f"step {steps[0]} to {steps[-1]}: {gain.mean:+.3f}{interval}, paired"


def _canvas(count: int, *, columns: int, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure with `count` empty axes over optimizer steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    every = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(colors="#40444b", labelsize=9)
        axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("optimizer step", fontsize=9, color="#40444b")
        axes.title.set_fontsize(10.5)
    return figure, every


def _line(
    axes: Axes, series: Series, colour: str, label: str, *, width: float = 1.8, faint: bool = False, exact: bool = False
) -> None:
    """A smoothed curve over its raw values; a dot where there is but one."""
    steps, values = series
    curve = values if exact else smoothed(values)
    if curve != values:
        axes.plot(steps, values, color=colour, alpha=0.15 if faint else 0.25, linewidth=0.9)
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps, curve, color=colour, linewidth=width * (0.7 if faint else 1), label=_plain(label), marker=marker)


def _as_share(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    low, high = axes.get_ylim()
    high = min(max(high, 0.01), 1.02)
    axes.set_ylim(max(low, -0.02 * high), high)

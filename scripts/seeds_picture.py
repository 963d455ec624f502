"""Draws several seeds of one training beside each other: the reward while training, and the held-out scores.

python scripts/seeds_picture.py runs/showcase/facts-?/rl --output docs/images/smollm2_facts.png

Each run is named by its seed. Curves of the reward are smoothed over the values of the steps; bars are 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memfactory.config import load_values
from memfactory.errors import MemFactoryError
from memfactory.evaluation.results import EvalHistory
from memfactory.figures import BLUE, PART_COLOURS, Series, read_series, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, *PART_COLOURS)
INK = "#40444b"


def main(words: Sequence[str] | None = None) -> None:
    """Read the runs and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help=f"run folders; at most {len(COLOURS)}")
    parser.add_argument("--data", default="held_out", help="the evaluation set")
    parser.add_argument("--metric", default="em")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(words)
    if len(arguments.runs) > len(COLOURS):
        raise SystemExit(f"error: {len(arguments.runs)} runs were given; the picture holds at most {len(COLOURS)}")
    try:
        rewards = {seed_of(run): read_series(run / "metrics.jsonl").get("reward", ([], [])) for run in arguments.runs}
        scores = {seed_of(run): scores_of(run, arguments.data, arguments.metric) for run in arguments.runs}
    except MemFactoryError as error:
        raise SystemExit(f"error: {error}") from None
    draw(rewards, scores, arguments.metric, arguments.output)
    print(arguments.output)


def seed_of(run: Path) -> str:
    """The name of a run in the picture. Raises ConfigError if the run has no readable config."""
    return f"seed {load_values(run / 'config.yaml').get('seed', 0)}"


def scores_of(run: Path, data: str, metric: str) -> dict[int, tuple[float, float, float]]:
    """The mean score of each evaluation by its step, and both ends of its interval. Exits if there is none."""
    scores = {}
    for step, datasets in EvalHistory.load(run / "eval.json").evaluations.items():
        if data in datasets and metric in datasets[data].metrics:
            result = datasets[data].metrics[metric]
            low, high = result.estimate.interval or (result.mean, result.mean)
            scores[step] = (result.mean, low, high)
    if not scores:
        raise SystemExit(f"error: {run} has no evaluation of {metric} on {data}")
    return scores


def draw(
    rewards: Mapping[str, Series],
    scores: Mapping[str, Mapping[int, tuple[float, float, float]]],
    metric: str,
    output: Path,
) -> None:
    """Draw both panels into `output`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    reward, held_out = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for (name, (steps, values)), colour in zip(rewards.items(), COLOURS, strict=False):
        reward.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
        reward.plot(steps, smoothed(values), color=colour, linewidth=1.9, label=name)
    shift = 0.006 * max(step for evaluations in scores.values() for step in evaluations)
    for place, ((name, evaluations), colour) in enumerate(zip(scores.items(), COLOURS, strict=False)):
        steps = [step + shift * (place - (len(scores) - 1) / 2) for step in evaluations]
        means = [mean for mean, _, _ in evaluations.values()]
        bars = [
            [max(0.0, mean - low) for mean, low, _ in evaluations.values()],
            [max(0.0, high - mean) for mean, _, high in evaluations.values()],
        ]
        held_out.errorbar(steps, means, yerr=bars, color=colour, marker="o", markersize=4, capsize=3, label=name)
    finish(reward, "Reward during training", "mean over the sampled episodes")
    finish(held_out, "Held-out questions", f"{metric}, with 95 % intervals")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)


def finish(axes: Axes, title: str, label: str) -> None:
    """Title, labels, grid and legend of a panel."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=11)
    axes.set_xlabel("optimizer step", fontsize=9, color=INK)
    axes.set_ylabel(label, fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    main()

"""The tables of an evaluation as plain cells, for the terminal and as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memfactory.evaluation.results import DatasetResult, MetricResult, comparable, differences
from memfactory.evaluation.statistics import Estimate
from memfactory.rollout import TextsRead

Results = Mapping[str, Mapping[str, DatasetResult]]
"""Model to dataset to result; failed datasets are left out."""

NOTHING = "–"
LEFT_OUT = "text left out"
"""The title of the column for text that an agent did not read."""
UNFINISHED = "unfinished thinking"
"""The title of the column for replies that were cut inside thinking."""


@dataclass(frozen=True)
class Grid:
    """A table: title, header, and rows as long as the header. The first `texts` columns are words, the others numbers.

    `notes` stand between title and header, for facts that a reader needs before the numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table as GitHub's Markdown, with numbers aligned to the right."""
        rule = tuple("---" if index < self.texts else "---:" for index in range(len(self.header)))
        lines = [self.header, rule, *self.rows]
        escaped = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join((self.title, *self.notes)) + "\n\n" + "\n".join(escaped) + "\n"

    def rich(self) -> Group:
        """The table under its title, for a terminal."""
        table = Table()
        for index, name in enumerate(self.header):
            side: Literal["left", "right"] = "left" if index < self.texts else "right"
            table.add_column(Text(name), justify=side, no_wrap=index == 0, overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return Group(Text(self.title, style="bold"), *(Text(note, style="yellow") for note in self.notes), table)


def main_table(results: Results, datasets: Sequence[str], notes: Sequence[str] = ()) -> Grid:
    """Models by datasets with the headline metric, and the average over the datasets.

    The headline is the first model's first metric that all models have. A model without a result in every dataset has
    no average. A last column appears if an agent left out text. `notes` come before the numbers.
    """
    headlines = {name: headline(results, name) for name in datasets}
    cut = _is_cut(results)
    rows = []
    for model, by_dataset in results.items():
        metrics = [_metric(by_dataset.get(name), headlines[name]) for name in datasets]
        means = [metric.mean for metric in metrics if metric is not None]
        average = f"{fmean(means):.4f}" if len(means) == len(datasets) else NOTHING
        cells = (NOTHING if metric is None else _value(metric.estimate) for metric in metrics)
        rows.append((model, *cells, average, *([_left_out(by_dataset.values())] if cut else [])))
    samples = sorted({result.samples for by_dataset in results.values() for result in by_dataset.values()})
    title = f"avg@{'/'.join(map(str, samples))} ± standard error, clustered by question" if samples else "No result"
    header = ("model", *(_column(name, headlines[name]) for name in datasets), "average", *([LEFT_OUT] if cut else []))
    return Grid(title, header, tuple(rows), notes=(*notes, *_incomparable(results, headlines)))


def _incomparable(results: Results, headlines: Mapping[str, str | None]) -> Iterator[str]:
    """A note on each dataset whose column differs between models in metric or questions."""
    for name, metric in headlines.items():
        of_dataset = [by_dataset[name] for by_dataset in results.values() if name in by_dataset]
        if of_dataset and metric is None:
            yield f"{name}: the models have no metric in common; see all metrics below"
        if len({result.data_hash for result in of_dataset}) > 1:
            yield f"{name}: the models answered different questions"


def difference_table(results: Results, datasets: Sequence[str]) -> Grid | None:
    """Every further model minus the first, paired by question, with 95 % intervals; None for a single model.

    A cell is empty if the tasks differ (by data hash) or the models have no metric in common.
    """
    (first, base), *others = results.items()
    if not others:
        return None
    headlines = {name: headline(results, name) for name in datasets}
    rows = [
        (model, *(_difference(base.get(name), by_dataset.get(name), headlines[name]) for name in datasets))
        for model, by_dataset in others
    ]
    title = f"Difference from {first}, paired by question [95 % confidence interval]"
    return Grid(title, ("model", *(_column(name, headlines[name]) for name in datasets)), tuple(rows))


def headline(results: Results, dataset: str) -> str | None:
    """The metric by which models are compared on `dataset`: the first that all of them have."""
    of_dataset = [by_dataset[dataset] for by_dataset in results.values() if dataset in by_dataset]
    if not of_dataset:
        return None
    return next((name for name in of_dataset[0].metrics if all(name in other.metrics for other in of_dataset)), None)


def _is_cut(results: Results) -> bool:
    """Whether any agent left out part of a text."""
    return any(result.texts.cut for by_dataset in results.values() for result in by_dataset.values())


def _percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{fraction:.1%}"


def _left_out(results: Iterable[DatasetResult]) -> str:
    """The percentage of tokens that were left out, and the number of texts that lost some."""
    texts = [result.texts for result in results]
    total = TextsRead(
        *(sum(counts) for counts in zip(*((t.texts, t.cut, t.read, t.dropped) for t in texts), strict=True))
    )
    return f"{total.dropped_share:.1%} ({total.cut} of {total.texts} texts)"


def detail_table(results: Results) -> Grid:
    """A line for every model, dataset and metric."""
    cut = _is_cut(results)
    thinks = any(
        result.unfinished_thinking is not None for by_dataset in results.values() for result in by_dataset.values()
    )
    names = ("model", "dataset", "metric", "questions", "k", "mean", "±", "95 % interval", "pass@k")
    rows = [
        (
            model,
            name,
            metric,
            str(value.n),
            str(value.k),
            f"{value.mean:.4f}",
            NOTHING if value.standard_error is None else f"{value.standard_error:.4f}",
            _interval(value.estimate),
            f"{value.pass_at[max(value.pass_at)]:.4f}" if value.pass_at else NOTHING,
            str(value.unknown),
            f"{result.truncated:.1%}",
            *([_percent(result.unfinished_thinking)] if thinks else []),
            *([_left_out([result])] if cut else []),
        )
        for model, by_dataset in results.items()
        for name, result in by_dataset.items()
        for metric, value in result.metrics.items()
    ]
    last = (*([UNFINISHED] if thinks else []), *([LEFT_OUT] if cut else []))
    header = (*names, "unknown scores", "truncated replies", *last)
    return Grid("All metrics", header, tuple(rows), texts=3)


def category_tables(results: Results, datasets: Sequence[str]) -> list[Grid]:
    """Models by category, for each dataset with several categories and each of its metrics.

    A column's n is its number of questions; a cell with fewer questions, because scores are unknown, shows its own n.
    """
    grids = []
    for name in datasets:
        by_model = {model: by_dataset[name] for model, by_dataset in results.items() if name in by_dataset}
        for metric in dict.fromkeys(metric for result in by_model.values() for metric in result.categories):
            rows = {
                model: result.categories[metric] for model, result in by_model.items() if metric in result.categories
            }
            grids.append(_category_table(f"{name} by category ({metric})", rows))
    return grids


def _category_table(title: str, rows: Mapping[str, Mapping[str, Estimate]]) -> Grid:
    sizes: dict[str, int] = {}
    for estimates in rows.values():
        for category, estimate in estimates.items():
            sizes[category] = max(estimate.n, sizes.get(category, 0))

    def cell(estimate: Estimate | None, size: int) -> str:
        if estimate is None:
            return NOTHING
        return _value(estimate) if estimate.n == size else f"{_value(estimate)} (n={estimate.n})"

    lines = tuple(
        (model, *(cell(estimates.get(category), size) for category, size in sizes.items()))
        for model, estimates in rows.items()
    )
    return Grid(title, ("model", *(f"{category} (n={size})" for category, size in sizes.items())), lines)


def _metric(result: DatasetResult | None, name: str | None) -> MetricResult | None:
    return None if result is None or name is None else result.metrics[name]


def _column(dataset: str, metric: str | None) -> str:
    return dataset if metric is None else f"{dataset} ({metric})"


def _difference(first: DatasetResult | None, second: DatasetResult | None, metric: str | None) -> str:
    if first is None or second is None or metric is None or not comparable(first, second):
        return NOTHING
    difference = differences(first, second).get(metric)
    return NOTHING if difference is None else f"{difference.mean:+.4f} {_interval(difference, signed=True)}"


def _value(estimate: Estimate) -> str:
    if estimate.standard_error is None:
        return f"{estimate.mean:.4f}"
    return f"{estimate.mean:.4f} ± {estimate.standard_error:.4f}"


def _interval(estimate: Estimate, *, signed: bool = False) -> str:
    if estimate.interval is None:
        return NOTHING
    low, high = estimate.interval
    return f"[{low:+.3f}, {high:+.3f}]" if signed else f"[{low:.3f}, {high:.3f}]"

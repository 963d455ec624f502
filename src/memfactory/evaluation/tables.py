"""Tables of an evaluation as plain cells, for the terminal and as markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memfactory.evaluation.results import DatasetResult, MetricResult, differences
from memfactory.evaluation.statistics import Estimate
from memfactory.rollout import TextsRead

Results = Mapping[str, Mapping[str, DatasetResult]]
"""Model to dataset to result; a dataset that failed is not there."""

NOTHING = "–"
LEFT_OUT = "text left out"
"""The column that is there where part of a text was not shown to an agent."""


@dataclass(frozen=True)
class Grid:
    """A table: title, header, rows of equally many cells. The first `texts` columns are words, the others numbers.

    `notes` stand between title and header: what a reader must know before the numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table as GitHub's markdown, numbers set to the right."""
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
    """Rows are models, columns datasets by their headline metric, then the average over the datasets.

    The headline is the first model's first metric that all models have. A model without a result in every dataset has
    no average. Where text was left out a last column says how much. `notes` come before the numbers.
    """
    headlines = {name: headline(results, name) for name in datasets}
    cut = _is_cut(results)
    rows = []
    for model, by_dataset in results.items():
        found = [_metric(by_dataset.get(name), headlines[name]) for name in datasets]
        whole = [cell.mean for cell in found if cell is not None]
        average = f"{fmean(whole):.4f}" if len(whole) == len(datasets) else NOTHING
        cells = (NOTHING if cell is None else _value(cell.estimate) for cell in found)
        rows.append((model, *cells, average, *([_left_out(by_dataset.values())] if cut else [])))
    samples = sorted({result.samples for by_dataset in results.values() for result in by_dataset.values()})
    title = f"avg@{'/'.join(map(str, samples))} ± standard error, clustered by question" if samples else "No result"
    header = ("model", *(_column(name, headlines[name]) for name in datasets), "average", *([LEFT_OUT] if cut else []))
    return Grid(title, header, tuple(rows), notes=(*notes, *_incomparable(results, headlines)))


def _incomparable(results: Results, headlines: Mapping[str, str | None]) -> Iterator[str]:
    """A note on each dataset whose column does not hold the same for all models."""
    for name, metric in headlines.items():
        found = [by_dataset[name] for by_dataset in results.values() if name in by_dataset]
        if found and metric is None:
            yield f"{name}: the models have no metric in common; see all metrics below"
        if len({one.data_hash for one in found}) > 1:
            yield f"{name}: the models were not asked the same questions"


def difference_table(results: Results, datasets: Sequence[str]) -> Grid | None:
    """Every further model minus the first, paired by question, with 95 % intervals; None for a single model.

    Models whose tasks differ (by data hash) are not compared, nor on a dataset for which they have no metric in common.
    """
    (first, base), *others = results.items()
    if not others:
        return None
    headlines = {name: headline(results, name) for name in datasets}
    rows = [
        (model, *(_difference(base.get(name), by_dataset.get(name), headlines[name]) for name in datasets))
        for model, by_dataset in others
    ]
    title = f"Difference to {first}, paired by question [95 % interval]"
    return Grid(title, ("model", *(_column(name, headlines[name]) for name in datasets)), tuple(rows))


def headline(results: Results, dataset: str) -> str | None:
    """The metric of `dataset` that models are set side by side in: the first that all of them have."""
    found = [by_dataset[dataset] for by_dataset in results.values() if dataset in by_dataset]
    if not found:
        return None
    return next((name for name in found[0].metrics if all(name in other.metrics for other in found)), None)


def _is_cut(results: Results) -> bool:
    """Whether part of a text was left out anywhere."""
    return any(result.texts.cut for by_dataset in results.values() for result in by_dataset.values())


def _left_out(found: Iterable[DatasetResult]) -> str:
    """The share of the texts' tokens that were left out, and of how many texts."""
    texts = [result.texts for result in found]
    whole = TextsRead(
        *(sum(counts) for counts in zip(*((t.texts, t.cut, t.read, t.dropped) for t in texts), strict=True))
    )
    return f"{whole.dropped_share:.1%} ({whole.cut} of {whole.texts} texts)"


def detail_table(results: Results) -> Grid:
    """A line for every model, dataset and metric."""
    cut = _is_cut(results)
    header = ("model", "dataset", "metric", "n", "k", "value", "±", "95 % interval", "pass@k", "unknown", "truncated")
    rows = [
        (
            model,
            name,
            metric,
            str(found.n),
            str(found.k),
            f"{found.mean:.4f}",
            NOTHING if found.standard_error is None else f"{found.standard_error:.4f}",
            _interval(found.estimate),
            f"{found.pass_at[max(found.pass_at)]:.4f}" if found.pass_at else NOTHING,
            str(found.unknown),
            f"{result.truncated:.1%}",
            *([_left_out([result])] if cut else []),
        )
        for model, by_dataset in results.items()
        for name, result in by_dataset.items()
        for metric, found in result.metrics.items()
    ]
    return Grid("All metrics", (*header, *([LEFT_OUT] if cut else [])), tuple(rows), texts=3)


def category_tables(results: Results, datasets: Sequence[str]) -> list[Grid]:
    """For each dataset whose questions are of several categories and each of its metrics: models by category.

    A column's n is its number of questions; a cell of fewer, since some scores are unknown, says so.
    """
    grids = []
    for name in datasets:
        found = {model: by_dataset[name] for model, by_dataset in results.items() if name in by_dataset}
        for metric in dict.fromkeys(metric for result in found.values() for metric in result.categories):
            rows = {model: result.categories[metric] for model, result in found.items() if metric in result.categories}
            grids.append(_category_table(f"{name} by category ({metric})", rows))
    return grids


def _category_table(title: str, rows: Mapping[str, Mapping[str, Estimate]]) -> Grid:
    sizes: dict[str, int] = {}
    for estimates in rows.values():
        for category, found in estimates.items():
            sizes[category] = max(found.n, sizes.get(category, 0))

    def cell(found: Estimate | None, size: int) -> str:
        if found is None:
            return NOTHING
        return _value(found) if found.n == size else f"{_value(found)} (n={found.n})"

    lines = tuple(
        (model, *(cell(estimates.get(category), size) for category, size in sizes.items()))
        for model, estimates in rows.items()
    )
    return Grid(title, ("model", *(f"{category} (n={size})" for category, size in sizes.items())), lines)


def comparable(first: DatasetResult, second: DatasetResult) -> bool:
    """Whether both are of the same tasks."""
    return first.data_hash == second.data_hash


def _metric(result: DatasetResult | None, name: str | None) -> MetricResult | None:
    return None if result is None or name is None else result.metrics[name]


def _column(dataset: str, metric: str | None) -> str:
    return dataset if metric is None else f"{dataset} ({metric})"


def _difference(first: DatasetResult | None, second: DatasetResult | None, metric: str | None) -> str:
    if first is None or second is None or metric is None or not comparable(first, second):
        return NOTHING
    found = differences(first, second).get(metric)
    return NOTHING if found is None else f"{found.mean:+.4f} {_interval(found, signed=True)}"


def _value(found: Estimate) -> str:
    return f"{found.mean:.4f}" if found.standard_error is None else f"{found.mean:.4f} ± {found.standard_error:.4f}"


def _interval(found: Estimate, *, signed: bool = False) -> str:
    if found.interval is None:
        return NOTHING
    low, high = found.interval
    return f"[{low:+.3f}, {high:+.3f}]" if signed else f"[{low:.3f}, {high:.3f}]"

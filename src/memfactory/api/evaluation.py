"""`evaluate`: score models on datasets, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memfactory.api.sources import Overrides, Source, log_choices, log_warnings, override_texts, resolved_config
from memfactory.config import Resolved, load_side_by_side
from memfactory.console import Console
from memfactory.evaluation.report import Report
from memfactory.evaluation.results import DatasetResult
from memfactory.evaluation.running import run_evaluation
from memfactory.evaluation.targets import EvalOverrides

EVALUATIONS = Path("runs/eval")


@dataclass(frozen=True)
class EvalOptions:
    """The models' data and settings, and the place of the results; None or empty: as the configs say.

    `data` names sets of the configs' `data.eval`, files, hub ids or registered datasets. `samples` is the k of avg@k,
    `limit` the number of questions of each set, `metrics` are registered rewards, and `judge` adds a judge.
    `baselines` are further agents for each model, such as "full_context". `like` is the run or config whose settings
    count for models by themselves. `output` is the folder of results (default: runs/eval/<names>); samples in it are
    not played again unless `overwrite` discards them. `progress` is the console for progress bars (None: no progress).
    A single name needs no list.

    >>> EvalOptions(data="facts", metrics=["em", "f1"], samples=4).overwrite
    False
    """

    data: str | Sequence[str] = ()
    samples: int | None = None
    metrics: str | Sequence[str] = ()
    limit: int | None = None
    judge: bool = False
    baselines: str | dict[str, object] | Sequence[str | dict[str, object]] = ()
    like: str | None = None
    output: str | Path | None = None
    overwrite: bool = False
    progress: Console | None = None

    def replacing(self) -> EvalOverrides:
        """The options that replace the configs' `eval` sections."""
        baselines = (self.baselines,) if isinstance(self.baselines, str | dict) else tuple(self.baselines)
        data, metrics = _several(self.data), _several(self.metrics)
        return EvalOverrides(data, self.samples, metrics, self.limit, self.judge, baselines)


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of every model on every dataset, with standard errors and 95 % intervals.

    `models["quickstart"]["held_out"]` is a DatasetResult: its `metrics` map a name to `mean`, `standard_error` and
    `estimate.interval`. `failures` maps model and dataset to the reason why there is no result. `str(result)` is the
    table in Markdown. `folder` holds results.json, results.md and every sample.

    >>> import memfactory, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     options = memfactory.EvalOptions(limit=4, output=folder)
    ...     result = memfactory.evaluate("quickstart", options=options)
    >>> result.complete, result.models["quickstart"]["held_out"].questions
    (True, 4)
    """

    folder: Path
    report: Report = field(repr=False)

    @property
    def models(self) -> Mapping[str, Mapping[str, DatasetResult]]:
        """The results by model and dataset."""
        return self.report.results

    @property
    def failures(self) -> Mapping[str, Mapping[str, str]]:
        """Why datasets have no result, by model and dataset."""
        return self.report.failures

    @property
    def complete(self) -> bool:
        """Whether every model has a result on every dataset."""
        return not self.failures

    def __str__(self) -> str:
        return self.report.markdown()


def evaluate(
    sources: Source | Sequence[str | Path],
    *overrides: Overrides,
    options: EvalOptions = EvalOptions(),
    trust: bool = False,
) -> EvaluationResult:
    """Evaluate one or several models and return their scores.

    >>> import memfactory, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     options = memfactory.EvalOptions(limit=8, baselines=("no_memory",), output=folder)
    ...     result = memfactory.evaluate("quickstart", {"eval.samples": 1}, options=options)
    >>> sorted(result.models)
    ['quickstart', 'quickstart no_memory']

    `sources` are run folders, checkpoints, models or configs; several are compared side by side, question by question.
    `overrides` are those of the command line and count for all sources. `trust` allows the code of plugins that a run
    folder brings. An interrupted evaluation continues from the samples in its output folder.

    Raises ConfigError before any model is loaded if sources, overrides or options do not fit. A dataset that fails is
    reported in `result.failures`.
    """
    targets = _targets(sources, overrides, options, trust=trust)
    folder = Path(options.output or EVALUATIONS / "-".join(target.name for target in targets)[:100])
    report = run_evaluation(
        targets, options.replacing(), output=folder, overwrite=options.overwrite, progress=options.progress
    )
    return EvaluationResult(folder, report)


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _targets(
    sources: Source | Sequence[str | Path], overrides: Sequence[Overrides], options: EvalOptions, *, trust: bool
) -> list[Resolved]:
    """The configuration of each source. A model by itself is run like `options.like`, or like the first config."""
    if isinstance(sources, Mapping):
        return [resolved_config(sources, overrides, "eval", trust=trust)]
    names = [sources] if isinstance(sources, str | Path) else sources
    texts = override_texts(overrides)
    targets = load_side_by_side([str(name) for name in names], texts, command="eval", like=options.like, trust=trust)
    for resolved in targets:
        log_warnings(resolved)
        log_choices(resolved)
    return targets

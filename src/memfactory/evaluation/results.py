"""The results of evaluations: of a metric, of a dataset, and of a training run by step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from memfactory.errors import DataError
from memfactory.evaluation.statistics import Estimate, Scores, avg_at_k, mean_pass_at_k, paired_difference
from memfactory.files.atomic import write_text
from memfactory.rollout import TextsRead


@dataclass(frozen=True)
class MetricResult:
    """avg@k of one metric over `n` questions with a known score; `unknown` counts the scores left out.

    `pass_at` maps 1, 2, 4, ... up to k to the unbiased pass@1, pass@2, pass@4, ... (right: a score of 1).
    """

    mean: float
    standard_error: float | None
    n: int
    k: int
    unknown: int
    pass_at: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def estimate(self) -> Estimate:
        """The mean with its standard error."""
        return Estimate(self.mean, self.standard_error, self.n)

    def to_json(self) -> dict[str, object]:
        """The result as a JSON object."""
        return {
            **_estimate_json(self.estimate),
            "interval": self.estimate.interval,
            "k": self.k,
            "unknown": self.unknown,
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
        }


@dataclass(frozen=True)
class DatasetResult:
    """One dataset under one model. The first of `metrics` is the headline.

    `truncated` is the fraction of replies cut by length, without replies in work that episodes share. `data_hash`
    identifies the contents of the tasks. `by_question` holds each metric's question means, for paired differences, and
    `categories` each metric's estimate by category (empty for a single category). `texts` counts the tokens read and
    left out of the questions' texts. `unfinished_thinking` is the fraction of replies whose thinking never
    ended (None: no reply thinks).
    """

    metrics: Mapping[str, MetricResult]
    questions: int
    samples: int
    truncated: float
    data_hash: str
    by_question: Mapping[str, Mapping[str, float]]
    categories: Mapping[str, Mapping[str, Estimate]] = field(default_factory=lambda: MappingProxyType({}))
    texts: TextsRead = field(default_factory=TextsRead)
    unfinished_thinking: float | None = None

    @property
    def headline(self) -> str:
        """The name of the first metric."""
        return next(iter(self.metrics))

    def to_json(self) -> dict[str, object]:
        """Everything but `by_question`; no `categories` if they are empty, no `unfinished_thinking` if none thinks."""
        categories = {
            metric: {category: _estimate_json(estimate) for category, estimate in estimates.items()}
            for metric, estimates in self.categories.items()
        }
        return {
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "questions": self.questions,
            "samples": self.samples,
            "truncated": self.truncated,
            **({} if self.unfinished_thinking is None else {"unfinished_thinking": self.unfinished_thinking}),
            "texts": asdict(self.texts),
            "data_hash": self.data_hash,
            **({"categories": categories} if categories else {}),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], by_question: Mapping[str, Mapping[str, float]]) -> DatasetResult:
        """The result that `to_json` wrote."""
        metrics = {
            metric: MetricResult(
                mean=result["mean"],
                standard_error=result["standard_error"],
                n=result["n"],
                k=result["k"],
                unknown=result["unknown"],
                pass_at={int(k): fraction for k, fraction in result["pass_at"].items()},
            )
            for metric, result in value["metrics"].items()
        }
        return DatasetResult(
            metrics=metrics,
            questions=value["questions"],
            samples=value["samples"],
            truncated=value["truncated"],
            unfinished_thinking=value.get("unfinished_thinking"),
            data_hash=value["data_hash"],
            by_question=by_question,
            texts=TextsRead(**value.get("texts", {})),
            categories={
                metric: {category: Estimate(**estimate) for category, estimate in estimates.items()}
                for metric, estimates in value.get("categories", {}).items()
            },
        )


def metric_result(scores: Scores, k: int) -> MetricResult | None:
    """The result of one metric's scores; None when every one is unknown."""
    estimate = avg_at_k(scores)
    if estimate is None:
        return None
    unknown = sum(score is None for values in scores.values() for score in values)
    sizes = [2**power for power in range(k.bit_length()) if 2**power <= k]
    fractions = {size: mean_pass_at_k(scores, size) for size in sizes}
    pass_at = {size: fraction for size, fraction in fractions.items() if fraction is not None}
    return MetricResult(estimate.mean, estimate.standard_error, estimate.n, k, unknown, pass_at)


def differences(first: DatasetResult, second: DatasetResult) -> dict[str, Estimate]:
    """`second` minus `first` by metric, paired by question, for the metrics of both."""
    paired = {
        metric: paired_difference(means, second.by_question[metric])
        for metric, means in first.by_question.items()
        if metric in second.by_question
    }
    return {metric: difference for metric, difference in paired.items() if difference is not None}


def comparable(first: DatasetResult, second: DatasetResult) -> bool:
    """Whether both results are of the same tasks."""
    return first.data_hash == second.data_hash


def differences_by_dataset(
    first: Mapping[str, DatasetResult], second: Mapping[str, DatasetResult]
) -> dict[str, dict[str, Estimate]]:
    """The differences by dataset and metric, for the datasets of both whose tasks are the same."""
    return {
        name: differences(first[name], result)
        for name, result in second.items()
        if name in first and comparable(first[name], result)
    }


def differences_json(by_dataset: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, dict[str, object]]]:
    """Paired differences by dataset and metric as a JSON object."""
    return {
        name: {
            metric: {**_estimate_json(difference), "interval": difference.interval}
            for metric, difference in by_metric.items()
        }
        for name, by_metric in by_dataset.items()
    }


def _estimate_json(estimate: Estimate) -> dict[str, object]:
    return {"mean": estimate.mean, "standard_error": estimate.standard_error, "n": estimate.n}


class EvalHistory:
    """The evaluations of a training run by step, each with a result by dataset: eval.json."""

    def __init__(self) -> None:
        self.evaluations: dict[int, Mapping[str, DatasetResult]] = {}

    def add(self, step: int, results: Mapping[str, DatasetResult]) -> None:
        """Add the evaluation after optimizer step `step`, in place of an earlier one of that step."""
        self.evaluations = dict(sorted({**self.evaluations, step: dict(results)}.items()))

    def has(self, step: int) -> bool:
        """Whether there is an evaluation of `step`."""
        return step in self.evaluations

    def means(self, step: int) -> dict[str, float]:
        """The means of the evaluation of `step`, as "dataset/metric"."""
        return {
            f"{name}/{metric}": metric_result.mean
            for name, result in self.evaluations[step].items()
            for metric, metric_result in result.metrics.items()
        }

    def differences(self) -> dict[str, dict[str, Estimate]]:
        """Last minus first by dataset and metric, paired by question; empty until there are two evaluations.

        Datasets whose questions have changed in between are left out.
        """
        if len(self.evaluations) < 2:
            return {}
        first, *_, last = self.evaluations.values()
        return differences_by_dataset(first, last)

    def save(self, path: Path) -> None:
        """Write eval.json atomically. `by_question` comes last, on one line."""
        readable = {
            "evaluations": [
                {"step": step, "datasets": {name: result.to_json() for name, result in results.items()}}
                for step, results in self.evaluations.items()
            ],
            "difference": differences_json(self.differences()),
        }
        questions = [
            {name: result.by_question for name, result in results.items()} for results in self.evaluations.values()
        ]
        text = json.dumps(readable, indent=2, ensure_ascii=False).removesuffix("\n}")
        write_text(path, f'{text},\n  "by_question": {json.dumps(questions, ensure_ascii=False)}\n}}\n')

    @staticmethod
    def load(path: Path, *, until_step: int | None = None) -> EvalHistory:
        """The history in `path` up to and including `until_step`; an empty one if the file does not exist.

        Raises DataError for a file of another shape.
        """
        history = EvalHistory()
        if not path.exists():
            return history
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            for at, questions in zip(value["evaluations"], value["by_question"], strict=True):
                if until_step is None or at["step"] <= until_step:
                    results = {
                        name: DatasetResult.from_json(result, questions[name])
                        for name, result in at["datasets"].items()
                    }
                    history.add(at["step"], results)
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
            raise DataError(f"{path} is not an evaluation history: {error!r}") from error
        return history

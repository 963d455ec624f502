"""What an evaluation found: a metric, a dataset, and a training run's evaluations from the first step to the last."""

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
    """avg@k of one metric: `n` questions with a known score, `k` attempts at each, `unknown` scores left out.

    `pass_at` maps 1, 2, 4, ... up to k to the unbiased pass@ that many attempts (right: a score of 1).
    """

    mean: float
    standard_error: float | None
    n: int
    k: int
    unknown: int
    pass_at: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.mean, self.standard_error, self.n)

    def to_json(self) -> dict[str, object]:
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

    `truncated` is the share of the attempts' own replies that were cut by length (not of those in work that attempts
    share), `data_hash` names the tasks' contents, and `by_question` holds each metric's question means, for paired
    differences. `categories` holds each metric's estimate by category of questions, where there are several. `texts`
    says how much of the questions' texts was read.
    """

    metrics: Mapping[str, MetricResult]
    questions: int
    samples: int
    truncated: float
    data_hash: str
    by_question: Mapping[str, Mapping[str, float]]
    categories: Mapping[str, Mapping[str, Estimate]] = field(default_factory=lambda: MappingProxyType({}))
    texts: TextsRead = field(default_factory=TextsRead)

    @property
    def headline(self) -> str:
        return next(iter(self.metrics))

    def to_json(self) -> dict[str, object]:
        """Everything but `by_question`; `categories` only where there are any."""
        categories = {
            metric: {category: _estimate_json(found) for category, found in estimates.items()}
            for metric, estimates in self.categories.items()
        }
        return {
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "questions": self.questions,
            "samples": self.samples,
            "truncated": self.truncated,
            "texts": asdict(self.texts),
            "data_hash": self.data_hash,
            **({"categories": categories} if categories else {}),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], by_question: Mapping[str, Mapping[str, float]]) -> DatasetResult:
        metrics = {
            metric: MetricResult(
                mean=found["mean"],
                standard_error=found["standard_error"],
                n=found["n"],
                k=found["k"],
                unknown=found["unknown"],
                pass_at={int(k): share for k, share in found["pass_at"].items()},
            )
            for metric, found in value["metrics"].items()
        }
        return DatasetResult(
            metrics=metrics,
            questions=value["questions"],
            samples=value["samples"],
            truncated=value["truncated"],
            data_hash=value["data_hash"],
            by_question=by_question,
            texts=TextsRead(**value.get("texts", {})),
            categories={
                metric: {category: Estimate(**found) for category, found in estimates.items()}
                for metric, estimates in value.get("categories", {}).items()
            },
        )


def metric_result(scores: Scores, k: int) -> MetricResult | None:
    """The result of one metric's scores; None when every one is unknown."""
    found = avg_at_k(scores)
    if found is None:
        return None
    unknown = sum(score is None for given in scores.values() for score in given)
    sizes = [2**power for power in range(k.bit_length()) if 2**power <= k]
    shares = {size: mean_pass_at_k(scores, size) for size in sizes}
    pass_at = {size: share for size, share in shares.items() if share is not None}
    return MetricResult(found.mean, found.standard_error, found.n, k, unknown, pass_at)


def differences(first: DatasetResult, second: DatasetResult) -> dict[str, Estimate]:
    """`second` minus `first` by metric, paired by question; metrics that both have."""
    found = {
        metric: paired_difference(means, second.by_question[metric])
        for metric, means in first.by_question.items()
        if metric in second.by_question
    }
    return {metric: difference for metric, difference in found.items() if difference is not None}


def difference_json(difference: Estimate) -> dict[str, object]:
    return {**_estimate_json(difference), "interval": difference.interval}


def _estimate_json(found: Estimate) -> dict[str, object]:
    return {"mean": found.mean, "standard_error": found.standard_error, "n": found.n}


class EvalHistory:
    """A training run's evaluations by step, each a result by dataset's name: eval.json."""

    def __init__(self) -> None:
        self.evaluations: dict[int, Mapping[str, DatasetResult]] = {}

    def add(self, step: int, results: Mapping[str, DatasetResult]) -> None:
        """Keep the evaluation after optimizer step `step`; one of that step is replaced."""
        self.evaluations = dict(sorted({**self.evaluations, step: dict(results)}.items()))

    def has(self, step: int) -> bool:
        return step in self.evaluations

    def means(self, step: int) -> dict[str, float]:
        """The means of the evaluation of `step`, as "dataset/metric"."""
        return {
            f"{name}/{metric}": found.mean
            for name, result in self.evaluations[step].items()
            for metric, found in result.metrics.items()
        }

    def differences(self) -> dict[str, dict[str, Estimate]]:
        """Last minus first by dataset and metric, paired by question; empty until there are two evaluations.

        A dataset whose questions have changed in between is left out.
        """
        if len(self.evaluations) < 2:
            return {}
        first, *_, last = self.evaluations.values()
        return {
            name: differences(result, last[name])
            for name, result in first.items()
            if name in last and result.data_hash == last[name].data_hash
        }

    def save(self, path: Path) -> None:
        """Write eval.json, whole or not at all. `by_question` comes last, on one line."""
        readable = {
            "evaluations": [
                {"step": step, "datasets": {name: result.to_json() for name, result in results.items()}}
                for step, results in self.evaluations.items()
            ],
            "difference": {
                name: {metric: difference_json(found) for metric, found in metrics.items()}
                for name, metrics in self.differences().items()
            },
        }
        questions = [
            {name: result.by_question for name, result in results.items()} for results in self.evaluations.values()
        ]
        text = json.dumps(readable, indent=2, ensure_ascii=False).removesuffix("\n}")
        write_text(path, f'{text},\n  "by_question": {json.dumps(questions, ensure_ascii=False)}\n}}\n')

    @staticmethod
    def load(path: Path, *, until_step: int | None = None) -> EvalHistory:
        """What `save` wrote, up to and with `until_step`; an empty history where there is no file.

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

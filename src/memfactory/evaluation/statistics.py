"""The statistics of k samples per question: avg@k, clustered standard errors, paired differences, pass@k.

The samples of one question are not independent draws from the data; the question is the unit. So the mean is taken over
questions of the mean over samples, and its standard error is the standard deviation of the question means divided by
the square root of their number (Miller 2024, arXiv 2411.00640). Pure functions on plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb, sqrt
from statistics import fmean, stdev

from memfactory.evaluation.intervals import difference_interval, score_interval

Scores = Mapping[str, Sequence[float | None]]
"""The scores of each question's samples by the question's id; None: unknown."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` questions, of scores or (`signed`) of their differences.

    `standard_error` is None for a single question, which carries no information about others.
    """

    mean: float
    standard_error: float | None
    n: int
    signed: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval by the rule of `intervals.py`; None for a single question."""
        if self.standard_error is None or self.n < 2:
            return None
        rule = difference_interval if self.signed else score_interval
        return rule(self.mean, self.standard_error, self.n)


def question_means(scores: Scores) -> dict[str, float]:
    """The mean of each question over its known scores. Questions without a known score are left out."""
    known = {question: [score for score in values if score is not None] for question, values in scores.items()}
    return {question: fmean(values) for question, values in known.items() if values}


def clustered_standard_error(means: Sequence[float]) -> float | None:
    """The standard error of the mean of `means` (one per question): sd / sqrt(n), None for fewer than two."""
    return stdev(means) / sqrt(len(means)) if len(means) > 1 else None


def estimate(means: Sequence[float]) -> Estimate | None:
    """The mean of `means` with its standard error; None when there are none."""
    return Estimate(fmean(means), clustered_standard_error(means), len(means)) if means else None


def avg_at_k(scores: Scores) -> Estimate | None:
    """The mean over questions of the mean over samples; None when every score is unknown."""
    return estimate(list(question_means(scores).values()))


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Estimate | None:
    """`second` minus `first` by question, over the questions in both; None without a common question.

    Both arguments are question means. The difficulty of a question cancels out of the difference, so the interval is
    narrower than that of two separate means.
    """
    difference = estimate([second[question] - mean for question, mean in first.items() if question in second])
    return None if difference is None else replace(difference, signed=True)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased probability that at least one of `k` samples is right (arXiv 2107.03374).

    1 - C(samples - correct, k) / C(samples, k), with `correct` of `samples` right; needs k <= samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@k needs 1 <= k <= samples, got k={k}, samples={samples}")
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} of {samples} samples cannot be right")
    return 1 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at_k(scores: Scores, k: int) -> float | None:
    """The mean of `pass_at_k` over the questions with at least `k` known scores; right means a score of 1."""
    known = [[score for score in values if score is not None] for values in scores.values()]
    passes = [pass_at_k(len(values), sum(score >= 1 for score in values), k) for values in known if len(values) >= k]
    return fmean(passes) if passes else None

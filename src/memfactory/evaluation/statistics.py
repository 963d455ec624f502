"""The statistics of repeated attempts: avg@k, standard errors clustered by question, paired differences, pass@k.

A question is asked k times, and its attempts are not independent draws from the data: the question is the unit. So a
mean is taken over questions of the mean over attempts, and its standard error is the standard deviation of the
question means over the root of their number (Miller 2024, arXiv 2411.00640). Pure functions on plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb, sqrt
from statistics import fmean, stdev

from memfactory.evaluation.intervals import difference_interval, share_interval

Scores = Mapping[str, Sequence[float | None]]
"""A question's id to the scores of its attempts; None: unknown."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` questions, of scores or (`signed`) of their differences.

    `standard_error` is None for a single question, which says nothing about others.
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
        rule = difference_interval if self.signed else share_interval
        return rule(self.mean, self.standard_error, self.n)


def question_means(scores: Scores) -> dict[str, float]:
    """Each question's mean over its known scores; a question without a known score is not there."""
    known = {question: [score for score in given if score is not None] for question, given in scores.items()}
    return {question: fmean(given) for question, given in known.items() if given}


def clustered_standard_error(means: Sequence[float]) -> float | None:
    """The standard error of the mean of `means` (one per question): sd / sqrt(n), None for fewer than two."""
    return stdev(means) / sqrt(len(means)) if len(means) > 1 else None


def estimate(means: Sequence[float]) -> Estimate | None:
    """The mean of `means` with its standard error; None when there are none."""
    return Estimate(fmean(means), clustered_standard_error(means), len(means)) if means else None


def avg_at_k(scores: Scores) -> Estimate | None:
    """The mean over questions of the mean over attempts; None when every score is unknown."""
    return estimate(list(question_means(scores).values()))


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Estimate | None:
    """`second` minus `first` by question, over the questions that both hold; None when they share none.

    Both arguments are question means. That the same question is hard for both models cancels out here, so the
    interval is narrower than that of two separate means.
    """
    found = estimate([second[question] - mean for question, mean in first.items() if question in second])
    return None if found is None else replace(found, signed=True)


def pass_at_k(attempts: int, correct: int, k: int) -> float:
    """The unbiased probability that at least one of `k` attempts is right (arXiv 2107.03374).

    1 - C(attempts - correct, k) / C(attempts, k), of `attempts` drawn, `correct` of them right; needs k <= attempts.
    """
    if not 1 <= k <= attempts:
        raise ValueError(f"pass@k needs 1 <= k <= attempts, got k={k}, attempts={attempts}")
    if not 0 <= correct <= attempts:
        raise ValueError(f"{correct} of {attempts} attempts cannot be right")
    return 1 - comb(attempts - correct, k) / comb(attempts, k)


def mean_pass_at_k(scores: Scores, k: int) -> float | None:
    """The mean of `pass_at_k` over the questions with at least `k` known scores; right means a score of 1."""
    known = [[score for score in given if score is not None] for given in scores.values()]
    values = [pass_at_k(len(given), sum(score >= 1 for score in given), k) for given in known if len(given) >= k]
    return fmean(values) if values else None

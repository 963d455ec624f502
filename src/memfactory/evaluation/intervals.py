"""The 95 % interval of a mean over questions, from its standard error. Pure functions on plain numbers.

Scores lie between 0 and 1. An interval that leaves that range is wrong, and so is one that is a single point because
every question had the same score.

A mean of scores takes Wilson's score interval (1927) for an effective number of questions. With p the mean, s its
standard error, n the questions, t Student's quantile for n - 1 degrees of freedom and z = 1.96:

    estimated  p (1 - p) / s^2 * (z / t)^2        the questions that would give this standard error with right or wrong
                                                  answers (Korn and Graubard, 1998), fewer by t because s is an estimate
    at least   n                                  no variable between 0 and 1 with the mean p varies more than right or
                                                  wrong answers do
    at most    n (n p (1 - p) + z^2/4) / (z^2/4)  the same number for scores that do not differ at all: a standard error
                                                  near 0 says little about the questions that were not asked

All scores equal to 0 or 1 give `at most` = n, Wilson's interval of n questions. The interval changes continuously with
the scores.

A difference takes Student's t about the mean, cut at -1 and 1. If no question differs, it takes Wilson's upper limit of
0 in n instead of a point. Numbers that cannot be scores between 0 and 1 (a penalty, for example) take Student's t.
"""

from __future__ import annotations

from functools import cache
from math import atan, cos, inf, pi, sin, sqrt
from statistics import NormalDist

NORMAL_95 = NormalDist().inv_cdf(0.975)
"""The normal distribution's two-sided 95 % quantile, 1.96."""
ROUNDING = 1e-9
EXACT_DEGREES = 100_000


def score_interval(mean: float, standard_error: float, n: int) -> tuple[float, float]:
    """The interval of a mean of scores over `n` (2 or more) questions."""
    spread = mean * (1 - mean)
    if not 0 <= mean <= 1 or standard_error**2 * (n - 1) > spread * (1 + ROUNDING) + ROUNDING**2:
        half = student_95(n - 1) * standard_error
        return mean - half, mean + half
    corrected = standard_error * student_95(n - 1) / NORMAL_95
    estimated = spread / corrected**2 if standard_error > ROUNDING else inf
    at_most = n * (4 * n * spread / NORMAL_95**2 + 1)
    return wilson(mean, min(max(estimated, n), at_most))


def difference_interval(mean: float, standard_error: float, n: int) -> tuple[float, float]:
    """The interval of a mean over `n` (2 or more) questions of the difference of two scores."""
    half = wilson(0.0, n)[1] if standard_error <= ROUNDING else student_95(n - 1) * standard_error
    bounded = abs(mean) <= 1 and standard_error**2 * (n - 1) <= (1 - mean**2) * (1 + ROUNDING) + ROUNDING**2
    return (max(-1.0, mean - half), min(1.0, mean + half)) if bounded else (mean - half, mean + half)


def wilson(fraction: float, n: float) -> tuple[float, float]:
    """Wilson's interval for `fraction` of `n`: every true fraction that a test at 5 % would not reject."""
    z2 = NORMAL_95**2
    centre = (fraction + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * sqrt(fraction * (1 - fraction) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@cache
def student_95(degrees: int) -> float:
    """Student's two-sided 95 % quantile for `degrees` of freedom, by bisection of the exact distribution.

    Beyond EXACT_DEGREES it takes the first term of the expansion in 1 / `degrees`, whose error is below 1e-9.
    """
    if degrees > EXACT_DEGREES:
        return NORMAL_95 * (1 + (NORMAL_95**2 + 1) / (4 * degrees))
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < 0.95 else (low, middle)
    return (low + high) / 2


def _central_probability(t: float, degrees: int) -> float:
    """P(|T| <= t) for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = atan(t / sqrt(degrees))
    square = cos(angle) ** 2
    odd = degrees % 2
    term = total = cos(angle) if odd else 1.0
    for step in range(3 if odd else 2, degrees - 1, 2):
        term *= square * (step - 1) / step
        total += term
    if not odd:
        return sin(angle) * total
    return 2 / pi * (angle + (sin(angle) * total if degrees > 1 else 0.0))

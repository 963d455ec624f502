"""The 95 % interval of a mean over questions, from its standard error. Pure functions on plain numbers.

Scores are between 0 and 1, and an interval that leaves that range, or that is a point because every question was right,
says something that cannot be. The rule:

- a mean of scores: Wilson's score interval (1927) for as many questions as would give this standard error with right or
  wrong answers, mean (1 - mean) / standard error^2 (the effective number of Korn and Graubard, 1998), which Student's t
  makes smaller where the error itself is estimated from few questions. One attempt at each question that is right or
  wrong has no such error beside its mean: Wilson's interval of the n questions as it is. So has a mean without any
  spread, of which the standard error says nothing.
- a difference: Student's t about the mean, cut at -1 and 1; without any spread what Wilson gives n questions of which
  none differs.
- numbers that cannot be means of scores between 0 and 1 (a penalty): Student's t.
"""

from __future__ import annotations

from functools import cache
from math import atan, cos, isclose, pi, sin, sqrt
from statistics import NormalDist

NORMAL_95 = NormalDist().inv_cdf(0.975)
"""Standard deviations of a normal variable to either side of its mean that hold it 95 times in 100: 1.96."""
ROUNDING = 1e-9


def share_interval(mean: float, standard_error: float, n: int) -> tuple[float, float]:
    """The interval of a mean of scores over `n` (2 or more) questions."""
    spread = mean * (1 - mean)
    if not 0 <= mean <= 1 or standard_error**2 * (n - 1) > spread * (1 + ROUNDING) + ROUNDING**2:
        half = student_95(n - 1) * standard_error
        return mean - half, mean + half
    if standard_error <= ROUNDING:
        return wilson(mean, n)
    effective = spread / standard_error**2
    if isclose(effective, n - 1, rel_tol=1e-6):
        return wilson(mean, n)
    return wilson(mean, effective * (NORMAL_95 / student_95(n - 1)) ** 2)


def difference_interval(mean: float, standard_error: float, n: int) -> tuple[float, float]:
    """The interval of a mean over `n` (2 or more) questions of the difference of two scores."""
    half = wilson(0.0, n)[1] if standard_error <= ROUNDING else student_95(n - 1) * standard_error
    bounded = abs(mean) <= 1 and standard_error**2 * (n - 1) <= (1 - mean**2) * (1 + ROUNDING) + ROUNDING**2
    return (max(-1.0, mean - half), min(1.0, mean + half)) if bounded else (mean - half, mean + half)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share of `n`: where a test of the true share would not reject what was found."""
    z2 = NORMAL_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@cache
def student_95(degrees: int) -> float:
    """What a Student's t of so many degrees of freedom is within, to either side of 0, 95 times in 100."""
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
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

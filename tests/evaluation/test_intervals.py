"""95 % intervals that cannot leave the range of scores, nor be a point, and hold the truth 95 times in 100."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.evaluation.intervals import student_95, wilson
from memfactory.evaluation.results import metric_result
from memfactory.evaluation.statistics import Estimate, avg_at_k, estimate, paired_difference


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # From the tables of Student's t, two-sided 5 %.
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (7, 2.36462), (30, 2.04227), (127, 1.97882)],
)
def test_students_t_agrees_with_the_tables(degrees, quantile):
    assert student_95(degrees) == pytest.approx(quantile, rel=1e-5)


def test_none_of_eight_is_wilsons_interval_and_no_point():
    # z^2 / (n + z^2) with z^2 = 3.841459: 3.841459 / 11.841459 = .324408.
    assert estimate([0.0] * 8).interval == pytest.approx((0.0, 0.324408), abs=1e-6)
    assert estimate([1.0] * 8).interval == pytest.approx((0.675592, 1.0), abs=1e-6)


def test_single_attempts_that_are_right_or_wrong_take_wilsons_interval():
    # 7 of 8: centre (.875 + .240091) / 1.480182 = .753347,
    # half 1.959964 / 1.480182 sqrt(.109375 / 8 + 3.841459 / 256) = 1.324137 x .169345 = .224235.
    assert estimate([1.0] * 7 + [0.0]).interval == pytest.approx((0.529112, 0.977582), abs=2e-6)
    assert estimate([1.0] * 7 + [0.0]).interval == wilson(7 / 8, 8)


def test_many_attempts_count_as_the_questions_that_their_error_is_worth():
    # Means .25, .5, .75, .5: mean .5, error sqrt(.125 / 3) / 2 = .102062; .25 / .0104167 = 24 effective questions,
    # times (1.959964 / 3.182446)^2 = .379294 gives 9.10306.
    assert estimate([0.25, 0.5, 0.75, 0.5]).interval == pytest.approx(wilson(0.5, 9.10306), abs=1e-5)


def test_no_difference_in_few_questions_is_no_certainty():
    same = {str(number): float(number % 2) for number in range(8)}
    found = paired_difference(same, same)
    assert found.mean == 0 and found.interval == pytest.approx((-0.324408, 0.324408), abs=1e-6)
    # All better by 1: cut at 1. One of 128 better: t of 127 about 1 / 128.
    assert paired_difference({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}).interval[1] == 1.0
    low, high = estimate_of_difference([1.0] + [0.0] * 127).interval
    assert (low, high) == pytest.approx((1 / 128 - 1.97882 / 128, 1 / 128 + 1.97882 / 128), abs=1e-6)


def estimate_of_difference(differences):
    first = {str(number): 0.0 for number in range(len(differences))}
    return paired_difference(first, {str(number): value for number, value in enumerate(differences)})


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_interval_of_scores_stays_in_their_range_and_holds_the_mean(means):
    low, high = estimate(means).interval
    assert 0 <= low <= high <= 1 and low < high
    assert low - 1e-9 <= estimate(means).mean <= high + 1e-9


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40))
def test_the_interval_of_a_difference_stays_between_minus_one_and_one(pairs):
    low, high = estimate_of_difference([second - first for first, second in pairs]).interval
    assert -1 <= low < high <= 1


def test_a_penalty_below_zero_has_an_interval_too():
    low, high = estimate([-0.5, -0.25, 0.0]).interval
    assert low < -0.25 < high and Estimate(-0.25, 0.0, 3).interval == (-0.25, -0.25)


@pytest.mark.parametrize(
    ("questions", "attempts", "share", "at_least"),
    [(8, 1, 0.05, 0.93), (8, 1, 0.5, 0.92), (8, 4, 0.2, 0.93), (32, 4, 0.05, 0.89), (128, 4, 0.5, 0.93)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(questions, attempts, share, at_least):
    # Questions differ in how hard they are (a beta distribution with the mean `share`); 1,000 evaluations of each kind.
    # 1.96 standard errors to either side hold it 32 and 56 times in 100 for the first and third.
    generator = numpy.random.default_rng(0)
    hard = generator.beta(share, 1 - share, (1000, questions))
    found = generator.binomial(attempts, hard) / attempts
    held = [low <= share <= high for low, high in (estimate(list(row)).interval for row in found)]
    assert sum(held) / len(held) >= at_least


def test_results_say_their_interval():
    found = metric_result({"a": [0.0, 0.0], "b": [0.0, 0.0]}, 2)
    assert found.to_json()["interval"] == avg_at_k({"a": [0.0], "b": [0.0]}).interval == wilson(0.0, 2)

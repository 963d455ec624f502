"""95 % intervals stay within the range of scores, are never a point, and cover the true mean 95 times in 100."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.evaluation.intervals import student_95, wilson
from memfactory.evaluation.results import metric_result
from memfactory.evaluation.statistics import Estimate, avg_at_k, estimate, paired_difference

TABLE = {1: 12.7062047, 2: 4.3026527, 3: 3.1824463, 4: 2.7764451, 5: 2.5705818, 6: 2.4469119, 7: 2.3646243,
         8: 2.3060041, 9: 2.2621572, 10: 2.2281389, 15: 2.1314495, 20: 2.0859634, 25: 2.0595386, 28: 2.0484071,
         29: 2.0452296, 30: 2.0422725, 60: 2.0002978, 120: 1.9799304}  # fmt: skip
"""Student's two-sided 95 % quantiles by degrees of freedom, from printed tables."""


@pytest.mark.parametrize("degrees", TABLE)
def test_students_quantiles_agree_with_the_tables(degrees):
    assert student_95(degrees) == pytest.approx(TABLE[degrees], abs=1e-6)


def test_students_quantiles_fall_towards_the_normal_one():
    quantiles = [student_95(degrees) for degrees in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True) and 1.9599640 < quantiles[-1] < 1.973


def test_the_quantile_of_many_degrees_follows_the_exact_ones():
    assert student_95(100_001) == pytest.approx(student_95(100_000), abs=1e-9)
    assert student_95(10**15) == pytest.approx(1.9599640, abs=1e-7)


def test_none_of_eight_is_wilsons_interval_and_no_point():
    # z^2 / (n + z^2) with z^2 = 3.841459: 3.841459 / 11.841459 = 0.324408.
    assert estimate([0.0] * 8).interval == pytest.approx((0.0, 0.324408), abs=1e-6)
    assert estimate([1.0] * 8).interval == pytest.approx((0.675592, 1.0), abs=1e-6)


def test_single_samples_that_are_right_or_wrong_take_wilsons_interval():
    # 7 of 8: centre (0.875 + 0.240091) / 1.480182 = 0.753347,
    # half 1.959964 / 1.480182 sqrt(0.109375 / 8 + 3.841459 / 256) = 1.324137 x 0.169345 = 0.224235.
    assert estimate([1.0] * 7 + [0.0]).interval == pytest.approx((0.529112, 0.977582), abs=2e-6)
    assert estimate([1.0] * 7 + [0.0]).interval == wilson(7 / 8, 8)


def test_many_samples_count_as_the_questions_of_equal_error():
    # Eight means of 0.25 and eight of 0.75: mean 0.5, variance 16 x 0.0625 / 15, squared error that / 16 = 1 / 240, and
    # 0.25 x 240 = 60 effective questions. With t of 15: 60 x (1.959964 / 2.131450)^2 = 50.7338.
    assert estimate([0.25] * 8 + [0.75] * 8).interval == pytest.approx(wilson(0.5, 50.7338), abs=1e-6)


def test_no_variation_between_questions_is_no_certainty():
    # At most n (4 n p (1 - p) / z^2 + 1) = 8 (8 / 3.841459 + 1) = 24.6605 effective questions.
    assert estimate([0.5] * 8).interval == pytest.approx(wilson(0.5, 24.6605), abs=1e-6)


def test_scores_vary_at_most_as_right_and_wrong_answers_do():
    # 0.25 and 0.75: mean 0.5, error 0.25, 4 effective questions, 0.0952 with t of 1. Two questions count as two.
    assert estimate([0.25, 0.75]).interval == wilson(0.5, 2)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.integers(0, 39))
def test_a_small_change_of_a_score_changes_the_interval_little(means, place):
    place %= len(means)
    other = [abs(mean - 1e-9) if index == place else mean for index, mean in enumerate(means)]
    assert estimate(other).interval == pytest.approx(estimate(means).interval, abs=1e-4)


def test_one_wrong_sample_of_80_hardly_narrows_the_interval():
    # 20 questions, 4 samples each, one of 80 wrong: at most 20 (80 x 0.9875 x 0.0125 / 3.841459 + 1) = 25.1414.
    assert estimate([1.0] * 19 + [0.75]).interval == pytest.approx(wilson(0.9875, 25.1414), abs=1e-6)
    # 20 of 20: 20 / 23.841459 = 0.838875.
    assert estimate([1.0] * 20).interval[0] == pytest.approx(0.838875, abs=1e-6)
    assert estimate([1.0] * 19 + [0.75]).interval[0] == pytest.approx(0.846654, abs=1e-6)


def test_no_difference_in_few_questions_is_no_certainty():
    same = {str(number): float(number % 2) for number in range(8)}
    difference = paired_difference(same, same)
    assert difference.mean == 0 and difference.interval == pytest.approx((-0.324408, 0.324408), abs=1e-6)
    # All better by 1: cut at 1. One of 128 better: t of 127 about 1 / 128.
    assert paired_difference({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}).interval[1] == 1.0
    low, high = estimate_of_difference([1.0] + [0.0] * 127).interval
    assert (low, high) == pytest.approx((1 / 128 - 1.97882 / 128, 1 / 128 + 1.97882 / 128), abs=1e-6)


def estimate_of_difference(differences):
    first = {str(number): 0.0 for number in range(len(differences))}
    return paired_difference(first, {str(number): value for number, value in enumerate(differences)})


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_interval_of_scores_is_in_range_and_holds_the_mean(means):
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
    ("questions", "samples", "mean", "at_least"),
    [
        (8, 1, 0.05, 0.93), (8, 1, 0.5, 0.92), (8, 4, 0.2, 0.93), (16, 16, 0.05, 0.95), (29, 16, 0.05, 0.95),
        (32, 4, 0.05, 0.95), (128, 4, 0.02, 0.94), (128, 4, 0.5, 0.93),
    ],
)  # fmt: skip
def test_the_interval_covers_the_mean_95_times_in_100(questions, samples, mean, at_least):
    # Difficulties of questions from a beta distribution with this mean; 1,000 evaluations of each kind.
    # 1.96 standard errors to either side cover it 32 and 56 times in 100 for the first and third.
    generator = numpy.random.default_rng(0)
    difficulties = generator.beta(mean, 1 - mean, (1000, questions))
    scores = generator.binomial(samples, difficulties) / samples
    covered = [low <= mean <= high for low, high in (estimate(list(row)).interval for row in scores)]
    assert sum(covered) / len(covered) >= at_least


def test_results_hold_their_interval():
    result = metric_result({"a": [0.0, 0.0], "b": [0.0, 0.0]}, 2)
    assert result.to_json()["interval"] == avg_at_k({"a": [0.0], "b": [0.0]}).interval == wilson(0.0, 2)

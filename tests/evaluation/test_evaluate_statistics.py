"""Statistics of k samples per question against numbers derived by hand."""

from math import sqrt

import pytest

from memfactory.evaluation.statistics import (
    Estimate,
    avg_at_k,
    clustered_standard_error,
    mean_pass_at_k,
    paired_difference,
    pass_at_k,
    question_means,
)


def test_avg_at_k_has_the_mean_and_error_of_question_means():
    # Question means 1, 1/2 and 0: mean 1/2, sd sqrt((1/4 + 0 + 1/4) / 2) = 1/2, standard error 1/2 / sqrt(3).
    scores = {"a": [1.0, 1.0], "b": [1.0, 0.0], "c": [0.0, 0.0]}
    result = avg_at_k(scores)
    assert result is not None
    assert result.mean == 0.5
    assert result.standard_error == pytest.approx(0.5 / sqrt(3), rel=1e-12)
    assert result.n == 3


def test_more_samples_of_the_same_questions_do_not_shrink_the_error():
    one = avg_at_k({"a": [1.0], "b": [0.0]})
    hundred = avg_at_k({"a": [1.0] * 100, "b": [0.0] * 100})
    assert one == hundred


def test_an_unknown_score_is_left_out_and_never_zero():
    # b has one known score, c none: means 1 and 1/4 over two questions.
    scores = {"a": [1.0, 1.0], "b": [None, 0.25], "c": [None, None]}
    assert question_means(scores) == {"a": 1.0, "b": 0.25}
    result = avg_at_k(scores)
    assert result is not None and result.mean == 0.625 and result.n == 2
    assert avg_at_k({"c": [None]}) is None


def test_every_question_has_the_same_weight():
    # Over samples it would be 2/3; over questions it is (0 + 1) / 2.
    result = avg_at_k({"a": [0.0, None], "b": [1.0, 1.0]})
    assert result is not None and result.mean == 0.5


def test_one_question_has_no_standard_error_and_no_interval():
    assert clustered_standard_error([0.7]) is None
    assert Estimate(0.7, None, 1).interval is None


def test_an_error_that_no_scores_can_have_takes_students_t():
    # Scores in [0, 1] with the mean 0.5 over 128 questions have an error of at most sqrt(0.25 / 127) = 0.044.
    # t of 127 degrees of freedom is 1.978820 (tables).
    low, high = Estimate(0.5, 0.1, 128).interval
    assert low == pytest.approx(0.5 - 0.1978820, abs=1e-6)
    assert high == pytest.approx(0.5 + 0.1978820, abs=1e-6)


def test_the_difficulty_of_a_question_cancels_in_a_difference():
    # By question +1/4, +1/4, +1/2: mean 1/3, squared deviations 1/144 + 1/144 + 1/36 = 1/24, sd sqrt(1/48).
    first = {"easy": 0.75, "middle": 0.5, "hard": 0.0, "only here": 1.0}
    second = {"hard": 0.5, "middle": 0.75, "easy": 1.0}
    result = paired_difference(first, second)
    assert result is not None
    assert result.mean == pytest.approx(1 / 3, rel=1e-12)
    assert result.standard_error == pytest.approx(sqrt(1 / 48) / sqrt(3), rel=1e-12)
    assert result.n == 3


def test_models_without_a_common_question_have_no_difference():
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def test_pass_at_k_counts_the_draws_with_a_right_sample():
    # 4 samples, 1 right, 2 drawn: C(3, 2) = 3 of C(4, 2) = 6 draws miss it.
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0


def test_pass_at_k_refuses_more_draws_than_samples():
    with pytest.raises(ValueError, match="k=5, samples=4"):
        pass_at_k(4, 1, 5)


def test_mean_pass_at_k_leaves_out_questions_with_too_few_scores():
    # a: 1 of 2 right gives pass@2 = 1; b: none right gives 0; c has one known score only.
    assert mean_pass_at_k({"a": [1.0, 0.0], "b": [0.0, 0.9], "c": [1.0, None]}, 2) == 0.5
    assert mean_pass_at_k({"c": [1.0, None]}, 2) is None

"""Results and the history of a run's evaluations."""

import json
from dataclasses import replace

import pytest

from memfactory.errors import DataError
from memfactory.evaluation.results import DatasetResult, EvalHistory, metric_result


def result(scores):
    """A dataset's result from the scores of each question's samples."""
    metric = metric_result(scores, 2)
    means = {question: sum(values) / len(values) for question, values in scores.items()}
    return DatasetResult({"sub_em": metric}, len(scores), 2, 0.25, "abc", {"sub_em": means})


BEFORE = result({"a": [0.0, 0.0], "b": [1.0, 0.0]})
AFTER = result({"a": [1.0, 1.0], "b": [1.0, 0.0]})


def history():
    made = EvalHistory()
    made.add(0, {"eval_50": BEFORE})
    made.add(20, {"eval_50": AFTER})
    return made


def test_pass_at_covers_powers_of_two_up_to_k():
    result = metric_result({"a": [1.0, 0.0, 0.0, 0.0, 0.0]}, 5)
    # 1 right of 5: pass@1 1/5, pass@2 1 - C(4,2)/C(5,2) = 1 - 6/10, pass@4 1 - C(4,4)/C(5,4) = 1 - 1/5.
    assert result.pass_at == pytest.approx({1: 0.2, 2: 0.4, 4: 0.8}, rel=1e-12)


def test_the_history_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "eval.json"
    history().save(path)
    assert EvalHistory.load(path).evaluations == history().evaluations


def test_eval_json_holds_means_errors_and_paired_differences(tmp_path):
    path = tmp_path / "eval.json"
    history().save(path)
    value = json.loads(path.read_text())
    assert [at["step"] for at in value["evaluations"]] == [0, 20]
    # Question means 0 and 1/2: mean 1/4, sd 1/2 / sqrt(2), standard error 1/4. Wilson's interval of two questions:
    # centre (0.25 + 0.960365) / 2.920729 = 0.414405, half 0.671053 sqrt(0.09375 + 0.240091) = 0.387728.
    assert value["evaluations"][0]["datasets"]["eval_50"]["metrics"]["sub_em"] == {
        "mean": 0.25,
        "standard_error": pytest.approx(0.25, rel=1e-12),
        "interval": [pytest.approx(0.026677, abs=1e-5), pytest.approx(0.802133, abs=1e-5)],
        "n": 2,
        "k": 2,
        "unknown": 0,
        "pass_at": {"1": 0.25, "2": 0.5},
    }
    # By question +1 and 0: mean 1/2, standard error (1 / sqrt(2)) / sqrt(2) = 1/2.
    difference = value["difference"]["eval_50"]["sub_em"]
    assert difference["mean"] == 0.5
    assert difference["standard_error"] == pytest.approx(0.5, rel=1e-12)
    # t of one degree of freedom is 12.706, so it may be anything between the worst and the best.
    assert difference["interval"] == [-1.0, 1.0]


def test_an_evaluation_of_a_step_is_replaced_and_steps_stay_sorted():
    made = history()
    made.add(10, {"eval_50": BEFORE})
    made.add(20, {"eval_50": BEFORE})
    assert list(made.evaluations) == [0, 10, 20]
    assert made.means(20) == {"eval_50/sub_em": 0.25}
    assert made.has(10) and not made.has(11)


def test_a_resumed_run_forgets_evaluations_after_its_checkpoint(tmp_path):
    path = tmp_path / "eval.json"
    history().save(path)
    assert list(EvalHistory.load(path, until_step=19).evaluations) == [0]


def test_one_evaluation_has_no_difference(tmp_path):
    made = EvalHistory()
    made.add(0, {"eval_50": BEFORE})
    assert made.differences() == {}
    assert EvalHistory.load(tmp_path / "none.json").evaluations == {}


def test_a_file_of_another_shape_is_a_data_error(tmp_path):
    path = tmp_path / "eval.json"
    path.write_text('{"evaluations": 3}')
    with pytest.raises(DataError, match="is not an evaluation history"):
        EvalHistory.load(path)


def test_evaluations_of_other_questions_have_no_difference():
    made = history()
    made.add(20, {"eval_50": replace(AFTER, data_hash="other")})
    assert made.differences() == {}

"""The figures of a run: the series they read and the curves they draw."""

import json
import subprocess
import sys

import pytest

from memfactory.evaluation.intervals import wilson
from memfactory.evaluation.results import DatasetResult, EvalHistory, metric_result
from memfactory.figures import draw_run, evaluation_figure, read_series, reward_figure, smoothed, training_figure


def write_run(folder, steps):
    rows = [
        {"step": step, "reward": step / 10, "reward/boxed_em": step / 20, "reward/format": 1.0, "kl": None, "loss": 0.5}
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def history():
    made = EvalHistory()
    for step, right in ((0, [1.0, 0.0]), (20, [1.0, 1.0])):
        scores = {"a": right, "b": [1.0, 1.0]}
        means = {question: sum(values) / 2 for question, values in scores.items()}
        metrics = {"boxed_em": metric_result(scores, 2)}
        made.add(step, {"facts": DatasetResult(metrics, 2, 2, 0.0, "x", {"boxed_em": means})})
    return made


def test_a_null_or_missing_metric_has_no_value_at_that_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "kl": 0.5}\n{"step": 2, "kl": null}\n{"step": 4, "kl": NaN}\n{"step": 3, "kl": 1.5, "note": "x"}\n'
    )
    assert read_series(path) == {"kl": ([1, 3], [0.5, 1.5])}


def test_the_last_line_of_a_step_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kl": 1}\n{"step": 2, "kl": 2}\n{"step": 1, "kl": 3}\n')
    assert read_series(path) == {"kl": ([1, 2], [3.0, 2.0])}


def test_few_values_are_not_smoothed():
    assert smoothed([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]


def test_forty_values_are_smoothed_over_two_to_either_side():
    values = [float(number) for number in range(40)]
    curve = smoothed(values)
    # The window at 0 holds 0, 1, 2; at 1 also 3; in the middle two on either side; at the end 37, 38, 39.
    assert curve[:3] == [1.0, 1.5, 2.0] and curve[20] == 20.0 and curve[-1] == 38.0


def test_a_run_gets_its_three_figures(tmp_path):
    write_run(tmp_path, 30)
    history().save(tmp_path / "eval.json")
    paths = draw_run(tmp_path)
    assert [path.name for path in paths] == ["reward.png", "evaluation.png", "training.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_run_without_anything_to_draw_gets_nothing(tmp_path):
    assert draw_run(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_reward_figure_shows_its_parts(tmp_path):
    write_run(tmp_path, 5)
    (axes,) = reward_figure(read_series(tmp_path / "metrics.jsonl")).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {
        "boxed_em": pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25]),
        "format": [1.0] * 5,
        "reward": pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]),
    }


def test_training_has_a_panel_for_each_logged_measure_only(tmp_path):
    write_run(tmp_path, 5)
    figure = training_figure(read_series(tmp_path / "metrics.jsonl"))
    assert [axes.get_title() for axes in figure.axes] == ["Loss"]


def test_the_evaluation_figure_shows_interval_and_difference():
    (axes,) = evaluation_figure(history()).axes
    # By question +1/2 and 0: mean 1/4, standard error (1/2 / sqrt 2) / sqrt 2 = 1/4, so 1/4 -+ 12.7 / 4, cut.
    assert axes.get_title() == "facts, avg@2\nstep 0 to 20: +0.250 [-1.000, +1.000], paired by question"
    assert axes.get_ylabel() == "held-out score (boxed_em)"
    line = axes.lines[0]
    assert list(line.get_xdata()) == [0, 20] and list(line.get_ydata()) == [0.75, 1.0]
    # Before: means 1/2 and 1, standard error 1/4: 3/16 / (1/4)^2 = 3 effective questions, with t fewer than the two.
    low = axes.collections[0].get_paths()[0].get_extents().y0
    assert low == pytest.approx(wilson(0.75, 2)[0], rel=1e-4)


def test_one_evaluation_alone_shows_no_difference():
    alone = EvalHistory()
    alone.add(0, history().evaluations[0])
    (axes,) = evaluation_figure(alone).axes
    assert axes.get_title() == "facts, avg@2"


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, memfactory.figures; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_percentages_of_zero_have_no_ticks_below_zero():
    figure = training_figure({"truncated": ([1, 2, 3], [0.0, 0.0, 0.0])})
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    assert low < 0 and all(tick >= 0 for tick in axes.get_yticks() if low <= tick <= high)


def test_scores_have_no_ticks_above_one():
    (axes,) = evaluation_figure(history()).axes
    low, high = axes.get_ylim()
    assert all(tick <= 1 for tick in axes.get_yticks() if low <= tick <= high)

"""Tables of an evaluation, cell by cell."""

import io
from dataclasses import replace

from rich.console import Console

from memfactory.evaluation.progress import progress_display
from memfactory.evaluation.results import DatasetResult, metric_result
from memfactory.evaluation.tables import detail_table, difference_table, main_table


def result(*means, data="x", metric="sub_em"):
    """A dataset's result from the score of one sample of each question."""
    scores = {str(number): [mean] for number, mean in enumerate(means)}
    by_question = {metric: {question: values[0] for question, values in scores.items()}}
    return DatasetResult({metric: metric_result(scores, 1)}, len(means), 1, 0.125, data, by_question)


def test_the_main_table_has_models_by_datasets_and_an_average():
    results = {
        "base": {"eval_50": result(0.0, 1.0), "fwe": result(0.0, 0.0, metric="string_match_all")},
        "trained": {"eval_50": result(1.0, 1.0)},
    }
    grid = main_table(results, ["eval_50", "fwe"])
    # 0 and 1: mean 1/2, sd sqrt(1/2), standard error 1/2. The average is over datasets: (1/2 + 0) / 2.
    assert grid.title == "avg@1 ± standard error, clustered by question"
    assert grid.header == ("model", "eval_50 (sub_em)", "fwe (string_match_all)", "average")
    assert grid.rows == (
        ("base", "0.5000 ± 0.5000", "0.0000 ± 0.0000", "0.2500"),
        ("trained", "1.0000 ± 0.0000", "–", "–"),
    )


def test_one_question_has_a_value_without_an_error():
    assert main_table({"base": {"eval_50": result(0.25)}}, ["eval_50"]).rows == (("base", "0.2500", "0.2500"),)


def test_differences_are_from_the_first_model_on_equal_tasks():
    results = {
        "base": {"eval_50": result(0.0, 1.0), "fwe": result(0.0, 0.0)},
        "trained": {"eval_50": result(1.0, 1.0), "fwe": result(1.0, 1.0, data="other")},
    }
    grid = difference_table(results, ["eval_50", "fwe"])
    # +1 and 0: mean 1/2, standard error 1/2, t of one degree of freedom 12.706: all that a difference can be.
    assert grid.title.startswith("Difference from base")
    assert grid.rows == (("trained", "+0.5000 [-1.000, +1.000]", "–"),)


def test_a_single_model_has_no_differences():
    assert difference_table({"base": {"eval_50": result(0.0, 1.0)}}, ["eval_50"]) is None


def test_the_details_have_a_line_for_every_metric():
    grid = detail_table({"base": {"eval_50": result(0.0, 1.0)}})
    # Wilson, 1 of 2: z^2 = 3.8415, centre 0.5, half 1.96 / 2.9207 sqrt(0.125 + 3.8415 / 16) = 0.4055.
    row = ("base", "eval_50", "sub_em", "2", "1", "0.5000", "0.5000", "[0.095, 0.905]", "0.5000", "0", "12.5%")
    assert grid.rows == (row,)


def test_markdown_escapes_what_would_end_a_cell():
    lines = main_table({"a|b": {"eval_50": result(0.25)}}, ["eval_50"]).markdown().splitlines()
    assert lines[2:] == [
        "| model | eval_50 (sub_em) | average |",
        "| --- | ---: | ---: |",
        "| a\\|b | 0.2500 | 0.2500 |",
    ]


def test_names_with_brackets_are_shown_as_they_are():
    console = Console(file=io.StringIO(), width=120)
    results = {"run[b]": {"e[/red]x": result(0.0, 1.0)}, "b": {"e[/red]x": result(0.0, 1.0)}}
    for grid in (main_table(results, ["e[/red]x"]), difference_table(results, ["e[/red]x"]), detail_table(results)):
        console.print(grid.rich())
    printed = console.file.getvalue()
    assert printed.count("run[b]") == 3 and printed.count("e[/red]x") == 4


def test_a_title_is_not_broken_at_the_width_of_its_table():
    console = Console(file=io.StringIO(), width=120)
    console.print(main_table({"a": {"b": result(0.0)}}, ["b"]).rich())
    assert console.file.getvalue().splitlines()[0] == "avg@1 ± standard error, clustered by question"


def test_progress_shows_names_with_brackets_as_they_are():
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)
        with progress_display(console, "run[b] on e[/red]x") as show:
            show(0, 2)
        assert "run[b] on e[/red]x" in console.file.getvalue()


def test_only_a_metric_that_all_models_have_is_a_headline():
    def scored(*metrics):
        results = [result(0.0, 1.0, metric=name) for name in metrics]
        merged = {name: one.metrics[name] for name, one in zip(metrics, results, strict=True)}
        by_question = {name: one.by_question[name] for name, one in zip(metrics, results, strict=True)}
        return replace(results[0], metrics=merged, by_question=by_question)

    results = {"a": {"x": scored("em", "sub_em"), "y": scored("em")}, "b": {"x": scored("sub_em"), "y": scored("f1")}}
    main, difference = main_table(results, ["x", "y"]), difference_table(results, ["x", "y"])
    assert main.header == ("model", "x (sub_em)", "y", "average")
    assert main.rows[0] == ("a", "0.5000 ± 0.5000", "–", "–")
    assert main.notes == ("y: the models have no metric in common; see all metrics below",)
    # No difference in two questions: 3.8415 / (2 + 3.8415) = 0.658 to either side.
    assert difference.rows == (("b", "+0.0000 [-0.658, +0.658]", "–"),)


def test_a_note_names_datasets_with_different_questions():
    results = {"a": {"x": result(0.0, 1.0)}, "b": {"x": result(0.0, 1.0, data="other")}}
    assert main_table(results, ["x"]).notes == ("x: the models answered different questions",)

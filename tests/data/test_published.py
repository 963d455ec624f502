"""A file of another form, given to the dataset of a benchmark, is told apart: the expected form and the given one."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from memfactory.data.benchmarks.hotpotqa_source import read_questions
from memfactory.errors import DataError
from memfactory.registry import DATASETS

ROW = {"context": "The sky is blue.", "input": "Which colour?", "answers": ["blue"]}
FORMS = {
    "squad": "expected SQuAD's form, an object with a list `data`, got ",
    "hotpotqa": "expected HotpotQA's form, rows with `_id`, `question`, `answer`, `supporting_facts` and "
    "`context`, got ",
    "locomo": "expected LoCoMo's form, a list of conversations with `sample_id`, `conversation` and `qa`, got ",
    "longmemeval": "expected LongMemEval's form, a list of questions with `question_id`, `question_date` and "
    "`haystack_sessions`, got ",
}
PLACES = {
    "squad": "rajpurkar.github.io",
    "hotpotqa": "hotpotqa.github.io",
    "locomo": "snap-research/locomo",
    "longmemeval": "xiaowu0162/longmemeval",
}
LINES = "rows of which the first ({} 1) is an object with context, input, answers"


def told(name: str, file: Path) -> str:
    dataset = DATASETS.get(name)
    with pytest.raises(DataError) as caught:
        dataset(dataset.Options(path=str(file)), Path()).rows()
    return str(caught.value)


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_another_form_are_told_with_the_expected_form(name: str, tmp_path: Path) -> None:
    lines, array, table = tmp_path / "rows.jsonl", tmp_path / "rows.json", tmp_path / "rows.parquet"
    lines.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n")
    array.write_text(json.dumps([ROW, ROW]))
    parquet.write_table(pyarrow.Table.from_pylist([ROW]), table)
    for file, given in ((lines, LINES.format("line")), (array, LINES.format("row")), (table, LINES.format("row"))):
        given = "a list of 2" if (name, file) == ("squad", array) else given
        message = told(name, file)
        assert message.startswith(f"{file}: {FORMS[name]}{given}. ")
        assert PLACES[name] in message and message.endswith("Rows of your own are read by the dataset `file`")


@pytest.mark.parametrize("name", FORMS)
def test_files_that_hold_no_rows_are_told_with_the_form_and_the_place(name: str, tmp_path: Path) -> None:
    text, value = tmp_path / "text.txt", tmp_path / "value.json"
    text.write_text("Hello there.\nMore.")
    value.write_text(json.dumps({"rows": [ROW]}, indent=1))
    for file in (text, value):
        message = told(name, file)
        assert message.startswith(str(file)) and "'s form" in message and PLACES[name] in message
    assert "not JSON: Expecting value" in told(name, text)


def test_one_row_that_fits_leaves_the_others_to_the_reader(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n" + json.dumps({"question_id": "1"}))
    dataset = DATASETS.get("longmemeval")
    rows = dataset(dataset.Options(path=str(file)), Path()).rows()
    assert rows[0].problem == "the row has no field 'question_id'; it has context, input, answers"
    assert rows[1].problem == "the row has no field 'question_type'; it has question_id"


def test_the_command_that_builds_long_texts_tells_the_form_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW))
    with pytest.raises(DataError, match=r"rows\.jsonl: expected HotpotQA's form"):
        read_questions(file)

"""Datasets from files and the hub: every form is read, and what cannot be read is told with its place."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from memfactory.data.rows import read_rows
from memfactory.errors import DataError
from memfactory.registry import DATASETS

ROWS = [{"input": "What?", "n": 1}, {"input": "Où \u2028 wohin?", "n": 2}, {"input": "Ende", "n": 3}]


def file_dataset(path, base_dir, **options):
    return DATASETS.get("file")(DATASETS.options("file")(path=str(path), **options), base_dir)


def values(rows):
    return [dict(row.values) for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("form", ["array", "pretty", "lines", "gaps"])
def test_json_is_read_in_every_form(tmp_path, encoding, newline, form):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    text = {
        "array": json.dumps(ROWS, ensure_ascii=False),
        "pretty": "\n\n" + json.dumps(ROWS, indent=4),
        "lines": "\n".join(lines),
        "gaps": "\n\n" + "\n  \n".join(lines) + "\n\n",
    }[form]
    path = tmp_path / "rows.data"
    path.write_bytes(text.replace("\n", newline).encode(encoding))
    assert values(read_rows(path, "rows")) == ROWS


def test_rows_say_where_they_come_from(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "b.jsonl").write_text("\n" + "\n\n".join(map(json.dumps, ROWS)))
    assert [row.source for row in file_dataset("a.json", tmp_path).rows()] == [f"a.json row {n}" for n in (1, 2, 3)]
    assert [row.source for row in file_dataset("b.jsonl", tmp_path).rows()] == [f"b.jsonl line {n}" for n in (2, 4, 6)]


def test_parquet_is_read_with_nested_fields(tmp_path):
    nested = [{"prompt": [{"role": "user", "content": f"q{n}"}], "reward_model": {"x": [str(n)]}} for n in range(150)]
    parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "rows.parquet")
    rows = file_dataset("rows.parquet", tmp_path).rows()
    assert values(rows) == nested
    assert rows[149].source == "rows.parquet row 150"


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_limit_takes_the_first_rows(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_text(json.dumps(ROWS) if suffix == "json" else "\n".join(map(json.dumps, ROWS)))
    assert values(file_dataset(path, tmp_path, limit=2).rows()) == ROWS[:2]
    assert values(file_dataset(path, tmp_path, limit=9).rows()) == ROWS


def test_a_limit_stops_before_a_bad_line_is_met(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{broken')
    assert [row.problem for row in file_dataset("rows.jsonl", tmp_path, limit=1).rows()] == [None]


def test_a_file_is_looked_for_from_the_working_directory_first(tmp_path, monkeypatch):
    here, base = tmp_path / "here", tmp_path / "base"
    for folder, number in ((here, 1), (base, 2)):
        folder.mkdir()
        (folder / "rows.json").write_text(json.dumps([{"n": number}]))
    monkeypatch.chdir(here)
    assert values(file_dataset("rows.json", base).rows()) == [{"n": 1}]
    (here / "rows.json").unlink()
    assert values(file_dataset("rows.json", base).rows()) == [{"n": 2}]


def test_bad_lines_and_elements_are_rows_with_a_problem(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"n": }\n[1]\n')
    (tmp_path / "b.json").write_text('[{"n": 1}, "text", null]')
    found = [(row.source, row.problem) for name in ("a.jsonl", "b.json") for row in read_rows(tmp_path / name, name)]
    assert found == [
        ("a.jsonl line 1", None),
        ("a.jsonl line 2", "not JSON: Expecting value (column 7)"),
        ("a.jsonl line 3", "a row should be an object with fields, got a list of 1"),
        ("b.json row 1", None),
        ("b.json row 2", "a row should be an object with fields, got the text 'text'"),
        ("b.json row 3", "a row should be an object with fields, got null"),
    ]


def test_one_line_is_one_row_and_a_number_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}')
    (tmp_path / "b.jsonl").write_text('{"n": 1}\n{"n": ' + "1" * 5000 + "}\n")
    assert values(read_rows(tmp_path / "a.jsonl", "a")) == [{"n": 1}]
    found = [(row.source, row.problem) for row in read_rows(tmp_path / "b.jsonl", "b")]
    assert found == [("b line 1", None), ("b line 2", "a number of more digits than can be read")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a": }]', "rows.json:2:8: not JSON: Expecting value"),
        (b'[{"a": 1}', "rows.json:1:10: not JSON: Expecting ',' delimiter"),
        (b'{\n  "rows": [1]\n}', "rows.json holds one JSON value over several lines; expected an array, or one row"),
        (b"[\xff]", "rows.json is not text in UTF-8: 'utf-8' codec can't decode byte 0xff in position 1"),
        (b"PAR1 but no parquet PAR1", "rows.json is not readable parquet"),
        (b"[" * 200_000, "rows.json: nested too deeply: more than 64 levels"),
        (b"[" + b"1" * 5000 + b"]", "rows.json: a number of more digits than can be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_place(tmp_path, content, message):
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        file_dataset("rows.json", tmp_path).rows()
    assert message in str(caught.value)


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path):
    (tmp_path / "eval_50.json").write_text("[]")
    with pytest.raises(DataError, match=r"eval_05.json: there is no such file .*did you mean .*eval_50.json\?"):
        file_dataset("eval_05.json", tmp_path).rows()


def test_a_folder_is_an_error_that_lists_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "eval_50.json").write_text("[]")
    with pytest.raises(DataError, match=r"data is a folder, but a file is expected; it holds: eval_50.json"):
        file_dataset("data", tmp_path).rows()


def test_the_hub_dataset_reads_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "eval_50.json").write_text(json.dumps(ROWS))
    options = {"id": str(tmp_path / "repository"), "data_files": "eval_50.json", "limit": 2}
    dataset = DATASETS.get("hub")(DATASETS.options("hub")(**options), tmp_path)
    rows = dataset.rows()
    assert values(rows) == ROWS[:2]
    assert rows[1].source.endswith("repository row 2")


def test_a_hub_dataset_that_is_not_there_is_an_error(tmp_path):
    dataset = DATASETS.get("hub")(DATASETS.options("hub")(id="nobody/nothing-of-this-name"), tmp_path)
    with pytest.raises(DataError, match=r"the hub dataset 'nobody/nothing-of-this-name' \(split 'train'\) cannot be"):
        dataset.rows()

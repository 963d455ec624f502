"""Files that survive a kill."""

import pytest

from memfactory.errors import DataError
from memfactory.files import JsonLinesWriter, read_json_lines, write_whole


def test_a_file_is_replaced_whole_and_leaves_no_working_file(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_whole(path, "first")
    write_whole(path, "zweite Zeile ü\n")
    assert path.read_bytes() == "zweite Zeile ü\n".encode()
    assert [found.name for found in path.parent.iterdir()] == ["result.json"]


def test_a_last_line_that_was_cut_short_is_not_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert list(read_json_lines(path)) == [{"a": 1}]


def test_appending_takes_the_cut_line_away_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    with JsonLinesWriter(path) as writer:
        writer.append({"a": 3})
    assert path.read_bytes() == b'{"a": 1}\n{"a": 3}\n'


def test_a_long_cut_line_is_taken_away_back_to_the_last_newline(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 200_000)
    JsonLinesWriter(path).close()
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_file_of_one_cut_line_becomes_empty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a')
    JsonLinesWriter(path).close()
    assert path.read_bytes() == b""


def test_a_line_is_on_disk_before_the_writer_is_closed(tmp_path):
    path = tmp_path / "rows.jsonl"
    writer = JsonLinesWriter(path)
    writer.append({"text": "é"})
    assert list(read_json_lines(path)) == [{"text": "é"}]
    writer.close()


def test_a_broken_line_in_the_middle_is_named_by_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        list(read_json_lines(path))
    path.write_bytes(b"[1]\n")
    with pytest.raises(DataError, match="line 1 should be a JSON object, not list"):
        list(read_json_lines(path))

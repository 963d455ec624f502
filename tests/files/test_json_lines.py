"""JSON-lines files that survive a kill."""

import subprocess
import sys

import pytest

from memfactory.errors import DataError
from memfactory.files.json_lines import JsonLinesWriter, read_json_lines


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


def test_a_line_that_a_full_disk_cuts_short_is_taken_back(tmp_path):
    """Files may grow to 40 bytes only, as on a disk that fills up in the middle of a line."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom memfactory.files.atomic import write_text\n"
        "from memfactory.files.json_lines import JsonLinesWriter\n"
        "path = Path(sys.argv[1])\nresource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "with JsonLinesWriter(path) as file:\n"
        "    file.append({'a': 'x' * 10})\n"
        "    for size in (30, 1):\n"
        "        try:\n            file.append({'a': 'y' * size})\n"
        "        except OSError as error:\n            print(error.filename)\n"
        "try:\n    write_text(path.with_name('b'), 'z' * 99)\nexcept OSError as error:\n    print(error.filename)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(tmp_path / "a"), str(tmp_path / "b")], done.stderr
    assert list(read_json_lines(tmp_path / "a")) == [{"a": "x" * 10}, {"a": "y"}]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

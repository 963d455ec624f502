"""The page on rows of one's own, executed from top to bottom in one folder."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from memfactory.cli.app import run
from snippets import ROOT, Block, blocks_of, words, write_files

PAGE = ROOT / "docs" / "own_rows.md"
BLOCKS = list(blocks_of(PAGE))


def executed(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command of the page; `python` runs a script of the page in this process."""
    command = words(line)
    if command[0] == "python":
        monkeypatch.setattr(sys, "argv", command[1:])
        runpy.run_path(command[1], run_name="__main__")
        return 0
    assert command[0] == "memfactory"
    return run(command[1:])


def is_error(block: Block) -> bool:
    """Whether the page shows the message of the block's command: a mistake in the rows."""
    return "broken.jsonl" in block.text


@pytest.mark.usefixtures("own_components")
def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_files(PAGE, tmp_path)
    printed: dict[str, str] = {}
    results_on_stdout: dict[str, str] = {}
    for place, block in enumerate(BLOCKS):
        for line in block.commands if block.language == "sh" else ():
            capsys.readouterr()
            status = executed(line, monkeypatch)
            captured = capsys.readouterr()
            printed[line], results_on_stdout[line] = captured.out + captured.err, captured.out
            assert (status != 0) == is_error(block), (line, printed[line])
            if is_error(block):
                assert BLOCKS[place + 1].text in printed[line]
    (table,) = (out for line, out in printed.items() if line.startswith("memfactory eval"))
    assert all(f"| {name} |" in table for name in ("tiny", "sft", "grpo")) and "95 % confidence interval" in table
    results = json.loads((tmp_path / "runs" / "table" / "results.json").read_text())
    assert [*results["models"]] == ["tiny", "sft", "grpo"]
    # Merged and not merged, the model gives the same answer.
    before, after = (answer for line, answer in results_on_stdout.items() if "notes.txt" in line)
    assert before == after != ""
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["h1", "h2", "h3"]
    assert (tmp_path / "merged" / "model.safetensors").is_file() and (tmp_path / "ada").is_dir()

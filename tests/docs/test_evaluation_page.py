"""The commands of docs/evaluation.md, run on the embedded model and small data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfactory.cli.app import run
from snippets import ROOT, blocks_of, words

PAGE = ROOT / "docs" / "evaluation.md"
SHORT = [
    "train.steps=1",
    "train.prompts_per_step=1",
    "train.group_size=2",
    "train.eval_at_start=false",
    "train.eval_at_end=false",
    "trackers=[]",
]
TURNS = [{"speaker": "Ada", "text": "I moved to Oslo.", "session": "1", "time": "May 7"}]


def commands() -> Iterator[list[str]]:
    """The page's commands in order, with `tiny` for the model from the hub and fewer questions."""
    for block in blocks_of(PAGE):
        for line in block.commands if block.language == "sh" else ():
            command = words(line.replace("Qwen/Qwen3-4B-Instruct-2507", "tiny"))[1:]
            short = ["--limit", "1", "--samples", "1", "model.cpu_threads=1"] if command[0] == "eval" else []
            yield [*command, *short]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs and files that the page names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for config, name in (("quickstart", "quickstart"), ("quickstart_memory_r1", "manager")):
        assert run(["train", f"configs/{config}.yaml", *SHORT, "--output", f"runs/{name}"]) == 0
    (tmp_path / "runs" / "mine").symlink_to("quickstart")
    (tmp_path / "data").mkdir()
    row = {"context": "Ada lives in Oslo. It was late.", "input": "Where does Ada live?", "answers": ["Oslo"]}
    for name in ("eval_50", "eval_100"):
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps([{**row, "index": 0}]))
    ruler = {"context": row["context"], "input": "Which words?", "outputs": ["Oslo"], "index": 0}
    (tmp_path / "data" / "eval_fwe_16384.json").write_text(json.dumps([ruler]))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "notes.txt").write_text(row["context"])
    (tmp_path / "monday.json").write_text(json.dumps(TURNS))
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_on_evaluation_runs(folder: Path) -> None:
    verbs = []
    for command in commands():
        assert run(command) == 0, command
        verbs.append(command[0])
        if command[0] == "eval":
            shutil.copytree(
                max((folder / "runs" / "eval").iterdir()), folder / "runs" / "eval" / "mine", dirs_exist_ok=True
            )
    assert verbs == ["eval", "eval", "infer", "infer", "infer", "infer", "view", "view", "view"]
    assert (folder / "answers.html").is_file() and (folder / "ada").is_dir()

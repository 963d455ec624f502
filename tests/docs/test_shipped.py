"""The shipped configs and the commands of the README work as they stand."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memfactory.config import load_config
from snippets import blocks_of

ROOT = Path(__file__).parents[2]
RUNNABLE = sorted((ROOT / "configs").glob("*.yaml"))
PARTS = sorted((ROOT / "configs").glob("*/*.yaml"))
TINY = ["model.path=tiny", "model.dtype=float32", "model.cpu_threads=1", "trackers=[]"]
# One step of the paper's configs on a small text, through the same code path.
SHORT = [
    *TINY,
    "agent.memory_tokens=16",
    "agent.answer_tokens=16",
    "train.steps=1",
    "train.prompts_per_step=2",
    "train.rollout_prompts=2",
    "train.group_size=2",
    "train.minibatches=1",
    "train.require_variance=false",
]
QUICK = ["train.steps=1", "train.prompts_per_step=2", "train.group_size=2", "eval.limit=4", "eval.samples=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A newcomer's folder: the configs, and data of the README's names."""
    place = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(ROOT / "configs", place / "configs")
    (place / "data").mkdir()
    rows = [
        {"context": f"The tower of town {n} was built in 19{n:02}. " * 30, "input": f"When was tower {n} built?",
         "answers": [f"19{n:02}"], "num_docs": 1, "index": n}
        for n in range(4)
    ]  # fmt: skip
    for name in ("hotpotqa_train", "eval_50", "eval_100"):
        (place / "data" / f"{name}.json").write_text(json.dumps(rows))
    (place / "book.txt").write_text("The book was written by Ada. " * 20)
    return place


def run(folder, words, seconds=240):
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_every_runnable_config_loads_and_says_what_it_is_for(path):
    resolved = load_config(path)
    assert resolved.config.train is not None
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", PARTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_part_composes_into_a_config(path, tmp_path):
    section = {"agents": "agent", "envs": "env", "train": "train"}[path.parent.name]
    sections = {"agent": "memory_agent", "env": "longcontext", "train": "grpo", section: path.stem}
    (tmp_path / "run.yaml").write_text("".join(f"{name}: {value}\n" for name, value in sections.items()))
    resolved = load_config(tmp_path / "run.yaml")
    assert resolved.values[section]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memagent_qwen3_1.7b", "memagent_original"])
def test_the_papers_configs_take_a_step_with_the_embedded_model(folder, name):
    run(folder, ["memfactory", "train", f"configs/{name}.yaml", *SHORT, "--output", f"runs/{name}"])
    (row,) = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    assert row["turns"] >= 2


def readme_commands():
    blocks = [block for block in blocks_of(ROOT / "README.md") if block.language == "sh"]
    return [line for block in blocks for line in block.commands if line.startswith("memfactory ")]


def shortened(command):
    """The command with few steps and questions."""
    words = shlex.split(command)
    return {"train": [*words, *QUICK, "trackers=[]"], "eval": [*words, "--limit", "2"]}.get(words[1], words)


@pytest.mark.slow
def test_every_command_of_the_readme_runs(folder):
    commands = readme_commands()
    assert [command.split()[1] for command in commands] == ["train", "eval", "infer"]
    for command in commands:
        run(folder, shortened(command))
    assert (folder / "runs" / "mine" / "final" / "config.json").is_file()


def test_the_readme_is_short_and_shows_code_first():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    assert "```python" in lines[:40] and "```text" in lines[:40]


def test_the_readme_names_every_document_that_exists_and_no_other():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {
        link for link in re.findall(r"\]\((docs/[^)#]+)\)", text) if link.count("/") == 1 and link.endswith(".md")
    }
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.stem != "index"}

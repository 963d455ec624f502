"""Full disks and damaged runs: whatever happens is told with the file's name, and never as a bug."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from memfactory.cli.app import run

CONFIG = """
model: {{path: {model}, cpu_threads: 1}}
agent: {{name: memory_agent, chunk_tokens: 200, memory_tokens: 4, answer_tokens: 4}}
env: longcontext
data: {{train: {{name: facts, rows: 4}}, eval: {{held: {{name: facts, rows: 2}}}}}}
train: {{name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, eval_at_start: true}}
eval: {{samples: 1, limit: 1}}
trackers: [console]
"""
FULL = """
import contextlib, io, json, resource, shutil, sys, tempfile
from pathlib import Path
tempfile.gettempdir()
import torch, peft, accelerate
from memfactory.cli.app import run
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
WORDS = (
    ["train", "x.yaml", "--output", "own"],
    ["eval", "x.yaml", "--output", "out"],
    ["infer", "x.yaml", "--input", "rows.jsonl", "--output", "a.jsonl"],
    ["infer", "x.yaml", "agent=memory_r1", "env=memory_bank", "--bank", "bank", "--question", "Who?",
     "--conversation", "said.json"],
    ["data", "export", "facts", "rows=20", "--output", "made.jsonl"],
    ["view", "seen"],
)
for limit in (0, 2500, 20000):
    for words in WORDS:
        for name in ("own", "out", "bank"):
            shutil.rmtree(name, ignore_errors=True)
        for name in ("a.jsonl", "made.jsonl"):
            Path(name).unlink(missing_ok=True)
        said = io.StringIO()
        # No file may grow beyond the limit, as on a disk that fills up while it is written.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = run(words)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(json.dumps([limit, words[0], code, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_model_path):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "x.yaml").write_text(CONFIG.format(model=small_model_path))
    (folder / "said.json").write_text('[{"speaker": "a", "text": "The code is 7."}]')
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert run(["data", "export", "facts", "rows=2", "--output", "rows.jsonl"]) == 0
        assert run(["train", "x.yaml", "--output", "seen"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_a_full_disk_is_told_with_the_path_wherever_it_strikes(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    done = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tried) == 18, done.stderr
    for limit, command, code, said in tried:
        assert "Traceback" not in said and "bug in MemFactory" not in said, (limit, command, said)
        if code:
            told = [line for line in said.splitlines() if line.startswith("error: ")]
            assert told and "File too large" in told[-1], (limit, command, said)
            assert any(name in told[-1] for name in ("own/", "out", "a.jsonl", "bank", "made.jsonl", "view.html"))
    assert [code for limit, command, code, _ in tried if command == "train"] == [1, 1, 1]
    assert all(code for limit, _, code, _ in tried if limit == 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


WAYS = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "garbage": lambda path: path.write_bytes(b"\xff\x00[[["),
    "a list": lambda path: path.write_bytes(b"[1]\n"),
    "a folder": replace_by_folder,
}
FILES = ("config.yaml", "environment.json", "metrics.jsonl", "eval.json", "transcripts/step-000001.jsonl")


@pytest.mark.parametrize("file", [*FILES, "final/config.json", "final/tokenizer.json", "final/model.safetensors"])
def test_a_damaged_file_of_a_run_is_never_a_bug(made, tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    commands = [["view", "RUN"], ["config", "validate", "RUN"]]
    commands = [["infer", "RUN", "--question", "Who?"]] if file.startswith("final") else commands
    for way, damage in WAYS.items():
        shutil.copytree(made / "seen", tmp_path / "RUN")
        damage(tmp_path / "RUN" / file)
        for words in commands:
            said = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                code = run(words)
            assert code in (0, 1, 2) and "Traceback" not in said.getvalue(), (way, words, said.getvalue())
            assert code != 0 or not file.startswith("final"), (way, said.getvalue())
            assert code == 0 or "RUN" in said.getvalue(), (way, words, said.getvalue())
        shutil.rmtree(tmp_path / "RUN")

"""Runs that are stopped, killed and resumed, as processes: they end bit-identical to one that never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vowels import vowels_plugin

CONFIG = """
plugins: [letters.py]
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 24, memory_tokens: 8, answer_tokens: 8}}
env: {{name: longcontext, rewards: {{share_of_e: 1.0}}}}
data: {{train: rows.jsonl, eval: {{held: rows.jsonl}}}}
train:
  name: grpo
  steps: {steps}
  prompts_per_step: 2
  group_size: 4
  minibatches: 2
  optimizer: {{learning_rate: 1.0e-3, schedule: cosine, warmup_steps: 2, weight_decay: 0.01}}
  loss: {{kl_coef: 0.01}}
  {lora}
  save_every: 1
  eval_every: 3
eval: {{samples: 2, limit: 2, metrics: [share_of_e]}}
trackers: []
seed: 5
"""
STEPS = 6


@pytest.fixture
def work(tmp_path, small_model_path):
    (tmp_path / "letters.py").write_text(vowels_plugin("share_of_e"))
    rows = [
        {
            "context": f"The code of entity {n} is {n * 7}. " * 3,
            "input": f"What is the code of {n}?",
            "answers": [str(n * 7)],
        }
        for n in range(5)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "full.yaml").write_text(CONFIG.format(model=small_model_path, steps=STEPS, lora=""))
    (tmp_path / "lora.yaml").write_text(
        CONFIG.format(model=small_model_path, steps=STEPS, lora="lora: {rank: 4, dropout: 0.1}")
    )
    return tmp_path


def start(work: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "memfactory", "train", *words]
    return subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(work: Path, *words: str) -> str:
    process = start(work, *words)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def weights(folder: Path) -> dict:
    files = sorted((folder / "final").glob("*.safetensors"))
    assert files, f"no weights in {folder / 'final'}"
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_end(work: Path, one: str, other: str) -> None:
    first, second = weights(work / one), weights(work / other)
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []
    timing = ("seconds", "tokens_per_second", "tflops")
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if not key.startswith(timing)}
            for line in (work / folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, other)
    ]
    assert [row["step"] for row in rows[1]] == list(range(1, STEPS + 1))
    assert rows[0] == rows[1]
    scores = [
        [
            (entry["step"], entry["datasets"]["held"]["metrics"])
            for entry in json.loads((work / folder / "eval.json").read_text())["evaluations"]
        ]
        for folder in (one, other)
    ]
    assert [step for step, _ in scores[1]] == [0, 3, 6]
    assert scores[0] == scores[1]


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["full.yaml", "lora.yaml"])
def test_a_run_killed_again_and_again_ends_as_one_that_never_stopped(work, config):
    run(work, config, "--output", "whole")
    chance = random.Random(3)
    # Killed while the second checkpoint is being written, then at random moments after a third and a fifth exist.
    for partial in (".step-2.partial", "step-3", "step-5"):
        process = start(work, config, "--output", "killed", "--resume", "auto")
        wait_for(work / "killed" / "checkpoints" / partial, process)
        time.sleep(0 if partial.startswith(".") else chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        process.stdout.close()
    run(work, config, "--output", "killed", "--resume", "auto")
    assert_same_end(work, "whole", "killed")


@pytest.mark.slow
def test_ctrl_c_saves_exits_130_and_the_resumed_run_ends_the_same(work):
    run(work, "full.yaml", "--output", "whole")
    process = start(work, "full.yaml", "--output", "stopped", "train.save_every=0")
    wait_for(work / "stopped" / "transcripts" / "step-000002.jsonl", process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "--resume" in output
    saved = os.listdir(work / "stopped" / "checkpoints")
    assert len(saved) == 1 and saved[0].startswith("step-")
    assert not (work / "stopped" / "final").exists()
    run(work, "full.yaml", "--output", "stopped", "--resume", "auto")
    assert_same_end(work, "whole", "stopped")


@pytest.mark.slow
def test_a_folder_in_use_and_another_config_are_refused(work):
    run(work, "full.yaml", "--output", "done", "train.steps=1")
    for words, told in (
        (["full.yaml", "--output", "done"], "is not empty"),
        (["full.yaml", "--output", "done", "--resume", "auto", "seed=6"], "cannot be resumed"),
        (["full.yaml", "--resume", "nowhere"], "there is no such folder"),
    ):
        process = start(work, *words)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2, output
        assert told in " ".join(output.split())
        assert "Traceback" not in output

"""Runs whose model is sharded over two processes: their weights, their checkpoints, and their ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_lost_work import command
from transformers import AutoModelForCausalLM

from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import REWARDS
from processes import in_processes

CONFIG = """
model: {{path: {model}, device: cpu}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{test_sharded_parity: 1.0}}}}
data: {{train: rows.jsonl, eval: {{held: rows.jsonl}}}}
eval: {{limit: 2}}
train:
  name: grpo
  shard: fsdp2
  steps: 3
  prompts_per_step: 3
  group_size: 2
  save_every: 1
  keep_checkpoints: 9
  eval_at_start: false
  optimizer: {{learning_rate: 1.0e-2, epsilon: 1.0e-2}}
  loss: {{kl_coef: 0.05}}
trackers: [{{kind: jsonl}}]
"""


@REWARDS.register("test_sharded_parity")
class Parity(RewardFunction):
    """The number of the attempt, mod 2."""

    def score(self, episodes):
        return [float(episode.index % 2) for episode in episodes]


def said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.txt")))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that plain transformers reads from `folder`."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def work(tmp_path, small_model_path, monkeypatch):
    rows = [{"context": f"Fact {n}.", "input": f"What is {n}", "answers": ["x"], "index": n} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=small_model_path))
    (tmp_path / "model").write_text(str(small_model_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(work: Path, processes: int, *words: str) -> None:
    """Run the command in as many processes."""
    codes = in_processes(processes, lambda rank: command(list(words)), work)
    assert codes == [0] * processes, said(work)


def killed_copy(run: Path, name: str, *, step: int) -> Path:
    """The run as a kill soon after `step` would have left it."""
    copy = run.with_name(name)
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("final", "*.lock"))
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return copy


def assert_close(folder: Path, expected: Path) -> None:
    given = weights(folder / "final")
    for name, value in weights(expected / "final").items():
        assert float((given[name] - value).norm() / value.norm()) < 1e-5, name


def test_a_sharded_run_ends_as_one_process_and_resumes_in_any_number(work):
    words = ["train", "run.yaml"]
    run(work, 2, *words, "--output", "two")
    run(work, 1, *words, "--output", "one")
    assert_close(work / "two", work / "one")
    for one, two in zip(rows_of(work / "one"), rows_of(work / "two"), strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        assert two["sampler_difference/max"] < 1e-4
    for name, source, processes in (("same", "two", 2), ("fewer", "two", 1), ("more", "one", 2)):
        copy = killed_copy(work / source, name, step=2)
        run(work, processes, *words, "--output", name, "--resume", "auto")
        assert_close(copy, work / "one")
    same, whole = weights(work / "same" / "final"), weights(work / "two" / "final")
    assert all(torch.equal(same[name], value) for name, value in whole.items())
    assert [path.name for path in (work / "same" / "checkpoints" / "step-3").glob("*.safetensors")] == []


def test_sharded_fine_tuning_ends_as_one_process(work):
    # Five conversations a step: in three processes 2, 2 and 1, of which two have the same micro-batch to pass.
    rows = [{"messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")]} for n in range(10)]
    (work / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = {"name": "sft", "shard": "fsdp2", "batch_size": 5, "steps": 2, "optimizer": {"epsilon": 0.01}}
    model = {"path": (work / "model").read_text(), "device": "cpu"}
    config = {"model": model, "data": {"train": "chats.jsonl"}, "train": sft, "trackers": []}
    (work / "sft.yaml").write_text(json.dumps(config))
    run(work, 3, "train", "sft.yaml", "--output", "three")
    run(work, 1, "train", "sft.yaml", "--output", "one")
    assert_close(work / "three", work / "one")


def test_sharded_adapters_end_as_one_process(work):
    words = ["train.lora={rank: 4}"]
    run(work, 2, "train", "run.yaml", "--output", "two", *words)
    run(work, 1, "train", "run.yaml", "--output", "one", *words)
    two, one = (load_file(work / name / "final" / "adapter_model.safetensors") for name in ("two", "one"))
    assert max(float((two[name] - value).norm()) for name, value in one.items()) < 1e-5
    copy = killed_copy(work / "two", "same", step=2)
    run(work, 2, "train", "run.yaml", "--output", "same", "--resume", "auto", *words)
    same = load_file(copy / "final" / "adapter_model.safetensors")
    assert all(torch.equal(same[name], value) for name, value in two.items())


@REWARDS.register("test_sharded_death")
class Death(RewardFunction):
    """In its second step the second process dies without a word."""

    calls = 0

    def score(self, episodes):
        type(self).calls += 1
        if os.environ["RANK"] == "1" and self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return [float(episode.index % 2) for episode in episodes]


def test_a_sharded_process_that_dies_ends_the_others(work):
    began = time.monotonic()
    words = ["train", "run.yaml", "--output", "dead", "env.rewards={test_sharded_death: 1.0}"]
    codes = in_processes(2, lambda rank: command(words), work)
    assert codes == [1, -signal.SIGKILL], said(work)
    assert time.monotonic() - began < 60
    first = " ".join((work / "rank-0.txt").read_text().split())
    assert first.count("error: rank 0: another process of this run has ended") == 1 and "Traceback" not in first
    assert [path.name for path in (work / "dead" / "checkpoints").iterdir()] == ["step-1"]

"""Runs with state beyond weights and optimizer end bit-identical, whether they were stopped half-way or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from memfactory.cli.app import run
from vowels import vowels_plugin

CONFIG = """
plugins: [vowels.py]
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 6, answer_tokens: 6}}
env: {{name: longcontext, rewards: {{{reward}: 1.0}}}}
data: {{train: rows.jsonl}}
train:
  name: grpo
  prompts_per_step: 2
  group_size: 3
  minibatches: 2
  eval_at_start: false
  eval_at_end: false
  optimizer: {{learning_rate: 1.0e-2}}
  {more}
trackers: []
"""
VARIANTS = {
    "adaptive KL to an average": "loss: {kl_coef: 0.1, kl_target: 0.001, kl_horizon: 20, reference_sync_steps: 1, "
    "reference_mixup: 0.3}",
    "reset under adapters": "lora: {rank: 4}\n  loss: {kl_coef: 0.1, reference_sync_steps: 2}",
    "KL in the reward": "loss: {kl_coef: 0.1, kl_in_reward: true, kl_target: 0.001, kl_horizon: 20}",
    "clip_cov and entropy": "loss: {objective: {name: clip_cov, fraction: 0.3, low: -9, high: 9}, entropy_coef: 0.01}",
}


def measured(folder: Path) -> list[dict[str, float]]:
    timing = ("seconds", "tokens_per_second", "tflops", "memory")
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(timing)}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_ends_as_one_that_never_stopped(
    tmp_path: Path, small_model_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    # A name belongs to one plugin in a process.
    reward = f"test_vowels_{[*VARIANTS].index(variant)}"
    (tmp_path / "vowels.py").write_text(vowels_plugin(reward))
    config = CONFIG.format(model=small_model_path, reward=reward, more=VARIANTS[variant])
    (tmp_path / "run.yaml").write_text(config)
    rows = [{"context": f"Ada has {n} cats.", "input": "How many?", "answers": [str(n)]} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["train", "run.yaml", "train.steps=3", "output=whole"]) == 0
    assert run(["train", "run.yaml", "train.steps=2", "output=parts"]) == 0
    assert run(["train", "run.yaml", "train.steps=3", "output=parts", "--resume"]) == 0
    whole, parts = measured(tmp_path / "whole"), measured(tmp_path / "parts")
    assert len(whole) == 3 and whole == parts
    first, second = (
        {name: value for file in (tmp_path / folder / "final").glob("*.safetensors")
         for name, value in load_file(file).items()}
        for folder in ("whole", "parts")
    )  # fmt: skip
    assert first and [name for name in first if not first[name].equal(second[name])] == []
    if "KL" in variant:
        assert len({row["kl_coef"] for row in whole}) > 1

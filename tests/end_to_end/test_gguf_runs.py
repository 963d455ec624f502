"""Runs on a GGUF file: they equal those on its plain folder, resume, and end in files that load anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.evaluation.targets import EvalOverrides, prepare
from memfactory.files.json_lines import read_json_lines
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from vowels import vowels_plugin

CONFIG = """
plugins: [letters.py]
model: {{path: {model}, dtype: float32, cpu_threads: 1}}
agent: {{name: memory_agent, chunk_tokens: 24, memory_tokens: 8, answer_tokens: 8}}
env: {{name: longcontext, rewards: {{share_of_e: 1.0}}}}
data: {{train: rows.jsonl}}
train:
  name: grpo
  steps: 2
  prompts_per_step: 2
  group_size: 4
  optimizer: {{learning_rate: 1.0e-2}}
  save_every: 1
eval: {{samples: 1, limit: 1, metrics: [share_of_e]}}
trackers: []
"""
LORA = {"full": (), "lora": ("train.lora={rank: 4, target_modules: all-linear}",)}
IDS = torch.tensor([[5, 60, 7, 200, 31]])


@pytest.fixture
def folder(tmp_path: Path, small_gguf_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config for the GGUF file and one for its plain folder."""
    (tmp_path / "letters.py").write_text(vowels_plugin("share_of_e"))
    rows = [
        {"context": f"The code of {n} is {n * 7}. " * 3, "input": f"Code of {n}?", "answers": ["7"]} for n in (1, 2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gguf.yaml").write_text(CONFIG.format(model=small_gguf_path))
    (tmp_path / "plain.yaml").write_text(CONFIG.format(model=small_gguf_path.parent / "plain"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def metrics(run_folder: Path) -> list[dict[str, float]]:
    """The numbers of each step, without times."""
    return [
        {name: value for name, value in row.items() if "second" not in name and "flops" not in name}
        for row in read_json_lines(run_folder / "metrics.jsonl")
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", LORA)
def test_a_run_on_a_gguf_file_is_one_on_its_folder_and_its_final_loads_anywhere(kind, folder, small_gguf_path, capfd):
    for name in ("gguf", "plain"):
        assert run(["train", f"{name}.yaml", "--output", name, *LORA[kind]]) == 0
    assert "it/s]" not in capfd.readouterr().err
    assert metrics(folder / "gguf") == metrics(folder / "plain")
    assert metrics(folder / "gguf")[0]["grad_norm"] > 0
    final = folder / "gguf" / "final"
    assert_equal_weights(final, folder / "plain" / "final")
    if kind == "lora":
        described = json.loads((final / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == str(small_gguf_path)
        base = AutoModelForCausalLM.from_pretrained(small_gguf_path.parent / "plain")
        loaded = logits(PeftModel.from_pretrained(base, final))
    else:
        loaded = logits(AutoModelForCausalLM.from_pretrained(final))
    ours = logits(load_model(ModelConfig(path=str(final), device="cpu"), training=False))
    assert torch.allclose(ours, loaded, atol=1e-5)
    before = logits(load_model(ModelConfig(path=str(small_gguf_path), device="cpu"), training=False))
    assert float((ours - before).abs().max()) > 1e-3
    assert AutoTokenizer.from_pretrained(final)("Code")["input_ids"]


@pytest.mark.parametrize("kind", LORA)
def test_a_run_on_a_gguf_file_resumes_to_the_same_weights(kind, folder):
    assert run(["train", "gguf.yaml", "--output", "whole", *LORA[kind]]) == 0
    assert run(["train", "gguf.yaml", "--output", "halves", "train.steps=1", *LORA[kind]]) == 0
    assert run(["train", "gguf.yaml", "--output", "halves", "--resume", *LORA[kind]]) == 0
    assert_equal_weights(folder / "whole" / "final", folder / "halves" / "final")


def test_a_trained_adapter_on_a_gguf_file_is_evaluated_and_asked(folder, capsys):
    assert run(["train", "gguf.yaml", "--output", "run", *LORA["lora"]]) == 0
    (folder / "text.txt").write_text("The code of 1 is 7.")
    assert run(["infer", "run/final", "--question", "Code of 1?", "--document", "text.txt"]) == 0
    assert run(["eval", "run", "gguf.yaml", "--data", "rows.jsonl", "--output", "results"]) == 0
    assert run(["eval", "run/final", "--like", "gguf.yaml", "--data", "rows.jsonl", "--output", "like"]) == 0
    capsys.readouterr()
    resolved = [load_config(name, command="eval") for name in ("run", "gguf.yaml")]
    trained, base = prepare(resolved, EvalOverrides(data=("rows.jsonl",)))
    # The weights of the adapter count beside those of the file.
    assert trained.fingerprint["weights"] != base.fingerprint["weights"]


def test_the_plan_of_a_gguf_file_is_that_of_its_folder(folder, small_gguf_path, capsys):
    plans = []
    for name in ("gguf", "plain"):
        assert run(["train", f"{name}.yaml", "--dry-run"]) == 0
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        plans.append([line for line in lines if "model" not in line and name not in line])
    assert plans[0] == plans[1] and any("parameters" in line for line in plans[0])

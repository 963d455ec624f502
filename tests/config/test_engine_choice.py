"""`engine: auto`: vLLM where it can serve the model, else hf, with the reason; the written config stays as it is."""

import json
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from memfactory.config import engine_choice, load_config, readiness
from memfactory.config.engine_choice import vllm_obstacle
from memfactory.config.loading import with_agent
from memfactory.engines.options import AutoEngineConfig, HfEngineConfig, VllmEngineConfig
from memfactory.model.options import ModelConfig
from memfactory.plan.memory import Device
from memfactory.plan.plan import make_plan

CONFIGS = Path(__file__).parents[2] / "configs"
QWEN = ModelConfig(path="Qwen/Qwen3-1.7B")
RUN = "model: tiny\nagent: memory_agent\nenv: longcontext\nengine: {kind: auto, max_batch: 3, max_num_seqs: 5}\n"
GPU = Device("a GPU of 80 GB", round(79.2 * 2**30), cuda=True)


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """A machine with a GPU and a vLLM whose list of architectures holds Qwen3's."""
    registry = tmp_path / "vllm" / "model_executor" / "models" / "registry.py"
    registry.parent.mkdir(parents=True)
    registry.write_text('_MODELS = {"Qwen3ForCausalLM": ("qwen3", "Qwen3ForCausalLM")}\n')
    spec = ModuleSpec("vllm", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "vllm")]
    monkeypatch.setattr(readiness, "has_cuda", lambda: True)
    monkeypatch.setattr(engine_choice, "installed", lambda package: True)
    monkeypatch.setattr(readiness, "installed", lambda package: True)
    monkeypatch.setattr(engine_choice.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(engine_choice, "_version", lambda: "0.33.0")


def test_without_a_gpu_it_is_hf(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "run.yaml").write_text(RUN)
    found = load_config(tmp_path / "run.yaml")
    assert found.config.engine == HfEngineConfig(max_batch=3)
    assert [str(choice) for choice in found.choices] == ["engine: auto takes hf, because no CUDA GPU is used here"]
    # A run writes the config as it was, so that it goes on elsewhere with the engine of that machine.
    assert (found.values["engine"]["kind"], found.values["engine"]["max_num_seqs"]) == ("auto", 5)
    assert with_agent(found, "full_context").values["engine"] == found.values["engine"]
    (tmp_path / "again.yaml").write_text(found.to_yaml())
    assert load_config(tmp_path / "again.yaml").values == found.values


def test_with_a_gpu_and_vllm_it_is_vllm(tmp_path, on_gpu):
    (tmp_path / "run.yaml").write_text(RUN.replace("tiny", QWEN.path) + "engines: {helper: auto}\n")
    found = load_config(tmp_path / "run.yaml")
    assert found.config.engine == VllmEngineConfig(max_num_seqs=5)
    assert found.config.engines["helper"] == VllmEngineConfig()
    assert str(found.choices[0]) == ("engine: auto takes vllm, because vLLM is installed and there is a CUDA GPU")
    assert vllm_obstacle(QWEN) is None


@pytest.mark.parametrize(
    ("model", "obstacle"),
    [
        (ModelConfig(path=QWEN.path, device="cpu"), "no CUDA GPU"),
        (ModelConfig(path=QWEN.path, device="cuda:1"), "first GPU"),
        (ModelConfig(path="model.gguf"), "GGUF"),
    ],
)
def test_a_model_that_vllm_cannot_serve_stays_with_hf(on_gpu, model, obstacle):
    assert obstacle in vllm_obstacle(model)


def test_other_obstacles_are_named(tmp_path, on_gpu, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"architectures": ["OddForCausalLM"]}))
    assert "does not list the architecture OddForCausalLM" in vllm_obstacle(ModelConfig(path=str(tmp_path / "model")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert vllm_obstacle(QWEN) == "the run has 2 processes and vLLM serves one"
    monkeypatch.setattr(engine_choice, "_version", lambda: "0.20.1")
    assert vllm_obstacle(QWEN) == "vllm 0.20.1 is older than 0.24"
    monkeypatch.setattr(engine_choice, "installed", lambda package: False)
    assert "pip install 'memfactory[vllm]'" in vllm_obstacle(QWEN)


def test_its_options_are_those_of_both_engines():
    auto = AutoEngineConfig(max_batch=3, gpu_memory_utilization=0.6, sleep=False)
    assert auto.hf() == HfEngineConfig(max_batch=3)
    assert auto.vllm() == VllmEngineConfig(gpu_memory_utilization=0.6, sleep=False)


@pytest.mark.parametrize("name", ["memagent_qwen3_4b", "memagent_qwen3_1.7b", "memagent_qwen3_4b_chunk_first"])
def test_the_published_configs_fit_80_gigabytes_on_either_engine(tmp_path, name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    row = {"context": "One two three. " * 5000, "input": "Which number comes last?", "answers": ["three"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    found = load_config(CONFIGS / f"{name}.yaml", [f"data.train={tmp_path / 'rows.jsonl'}"])
    (choice,) = found.choices
    assert choice.auto.gpu_memory_utilization == 0.5
    plan = make_plan(found, GPU)
    assert not [text for text in (*plan.problems, *plan.warnings) if "vLLM" in text]
    assert dict(plan.work)["engine"] == "hf is planned; auto takes vllm where it is installed"
    assert "of the longest conversations" in dict(plan.work)["vLLM"]
    small = make_plan(found, Device("a GPU of 24 GiB", 24 * 2**30, cuda=True))
    assert [text for text in small.warnings if text.startswith("with vLLM about ")]


@pytest.mark.parametrize("device", [GPU, replace(GPU, processes=2), Device("a processor", 2**40, cuda=False)])
def test_a_plan_for_elsewhere_is_the_same_whether_this_machine_has_vllm_or_not(tmp_path, request, device, monkeypatch):
    text = RUN.replace("tiny", QWEN.path) + "train: {name: grpo, steps: 1}\ndata: {train: {name: facts, rows: 2}}\n"
    (tmp_path / "run.yaml").write_text(text)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    without = make_plan(load_config(tmp_path / "run.yaml"), device)
    request.getfixturevalue("on_gpu")
    found = load_config(tmp_path / "run.yaml")
    assert found.config.engine.kind == "vllm"
    plan = make_plan(found, device)
    assert (plan.memory, plan.problems) == (without.memory, without.problems) and plan.memory["key-value cache"]
    assert "vLLM" not in "".join(plan.memory) and "because vLLM" not in dict(plan.work).get("importance correction", "")
    assert dict(plan.work)["engine"].startswith("hf")

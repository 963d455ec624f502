"""What `--dry-run` says: the work of a step, memory by component, and why a plan is impossible."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.config.grpo import GrpoOptions
from memfactory.config.optimizer import LoraOptions, OptimizerOptions
from memfactory.config.training import TrainerOptions
from memfactory.model.loading import load_architecture
from memfactory.model.options import ModelConfig
from memfactory.plan.footprint import (
    Architecture,
    Load,
    adapter_parameters,
    architecture,
    memory_by_component,
    peak_bytes,
    phase_bytes,
)
from memfactory.plan.memory import Device
from memfactory.plan.plan import make_plan

SMALL = Architecture(
    parameters=1000,
    head_parameters=200,
    layers=2,
    hidden=8,
    intermediate=16,
    vocabulary=25,
    attention_width=8,
    kv_width=4,
    max_positions=64,
)


def memory(options, **changes):
    settings = {"dtype": "float32", "kv_tokens": 10, "micro_tokens": 5, "reference": False, "cuda": False, **changes}
    return memory_by_component(SMALL, options, Load(**settings))


@pytest.mark.parametrize(
    ("name", "body", "head"),
    [("Qwen/Qwen3-4B-Instruct-2507", 3.6335e9, 0.389e9), ("Qwen/Qwen3-1.7B", 1.4094e9, 0.3112e9)],
)
def test_the_sizes_of_the_papers_models_are_known_without_a_hub(name, body, head):
    sizes = architecture(load_architecture(ModelConfig(path=name)))
    assert sizes.head_parameters == pytest.approx(head, rel=1e-3)
    assert sizes.parameters - sizes.head_parameters == pytest.approx(body, rel=1e-3)


def test_the_cache_of_one_token_is_two_values_a_layer_and_key_value_width():
    sizes = architecture(load_architecture(ModelConfig(path="Qwen/Qwen3-4B-Instruct-2507")))
    assert sizes.kv_bytes("bfloat16") == 2 * 36 * 8 * 128 * 2 == 147_456


def test_weights_that_decoding_copies_are_counted_within_their_limit_and_on_a_cpu_only():
    # 1,000 weights of 4 bytes; the head of an untied model is one of two matrices of 25 x 8.
    assert memory(TrainerOptions(), packed_limit=10_000)["decoding"] == 4000
    assert memory(TrainerOptions(), packed_limit=3000)["decoding"] == 3000
    untied = memory_by_component(
        replace(SMALL, tied=False),
        TrainerOptions(),
        Load("float32", kv_tokens=0, micro_tokens=5, reference=False, cuda=False, packed_limit=10_000),
    )
    assert untied["decoding"] == 4 * (1000 - 200)
    assert memory(TrainerOptions(), packed_limit=10_000, cuda=True)["decoding"] == 0
    assert memory(TrainerOptions(), packed_limit=10_000, dtype="bfloat16")["decoding"] == 0


def test_fused_layers_keep_less():
    def stored(**changes):
        return memory(TrainerOptions(gradient_checkpointing=False), **changes)["stored activations"]

    # Two layers, five tokens, four bytes; hidden and attention 8, keys 4, the gated unit 16 wide.
    assert stored(fused_layers=False) == 2 * 5 * 4 * (6 * 8 + 5 * 8 + 4 * 4 + 4 * 16)
    assert stored() == 2 * 5 * 4 * (4 * 8 + 4 * 8 + 3 * 4 + 2 * 16)


def test_full_fine_tuning_keeps_float32_weights_gradients_and_moments():
    found = memory(TrainerOptions())
    assert (found["weights"], found["gradients"], found["optimizer"], found["reference"]) == (4000, 4000, 8000, 0)
    mixed = memory(TrainerOptions(), dtype="bfloat16", reference=True)
    # Embeddings (25 x 8) stay in float32 in the reference, as autocast leaves them.
    assert (mixed["weights"], mixed["reference"]) == (4000, 2 * 800 + 4 * 200)


def test_weights_rounded_at_random_take_two_bytes_and_their_gradients_four():
    options = TrainerOptions(master_weights="bfloat16_stochastic")
    found = memory(options, dtype="bfloat16", reference=True)
    assert (found["weights"], found["gradients"], found["reference"]) == (2000, 4000, 2000)
    assert found["weights as computed with"] == 0


@pytest.mark.parametrize(
    ("kind", "cuda", "size"),
    [
        ("adamw", True, 8000),
        ("adamw_8bit", True, 2031),  # one byte a moment, and 4 for each 256 of them
        ("adamw_8bit_torchao", False, 2031),
        ("adamw_4bit_torchao", False, 1062),  # half a byte, and 4 for each 128
        ("adamw_offload", True, 0),
        ("adamw_offload", False, 8000),
        ("auto", True, 2031),
        ("auto", False, 8000),
    ],
)
def test_moments_take_what_their_kind_says_where_they_lie(kind, cuda, size):
    options = TrainerOptions(optimizer=OptimizerOptions(kind=kind))
    assert memory(options, cuda=cuda)["optimizer"] == size


def test_adapters_alone_have_gradients_and_moments():
    # A layer's linear maps, in + out: 8+8, 8+4, 8+4, 8+8, 8+16, 8+16, 16+8 = 128; two layers, rank 3.
    assert adapter_parameters(SMALL, 3) == 2 * 3 * 128 == 768
    found = memory(TrainerOptions(lora=LoraOptions(rank=3)), dtype="bfloat16", reference=True)
    assert found["weights"] == 2 * 1000 + 4 * 768
    assert (found["gradients"], found["optimizer"], found["reference"]) == (4 * 768, 8 * 768, 0)


def test_the_peak_is_that_of_the_largest_phase():
    parts = {"weights": 1, "optimizer": 3, "reference": 4, "gradients": 2, "frozen models": 100}
    training = {"stored activations": 20, "logits": 7, "a layer's backward pass": 9}
    found = phase_bytes({**parts, **training, "key-value cache": 50, "decoding": 5, "optimizer's workspace": 6})
    assert found == {"rollout": 108 + 55, "training pass": 108 + 2 + 20 + 9, "optimizer step": 108 + 2 + 6}
    assert peak_bytes({**parts, **training, "key-value cache": 5}) == 108 + 2 + 20 + 9


def test_gradient_checkpointing_stores_one_state_a_layer_and_one_layer_whole():
    whole, one = memory(TrainerOptions()), memory(TrainerOptions(gradient_checkpointing=True))
    # Five tokens of 8 float32 numbers for each of two layers.
    assert one["stored activations"] == 5 * 8 * 4 * 2
    working = "a layer's backward pass"
    assert one[working] - whole[working] == whole["stored activations"] // 2


def test_keys_and_values_of_a_layer_are_repeated_only_under_masked_attention():
    # Four of eight columns have keys and values: 2 x 4 bytes x 8 a token.
    assert memory(TrainerOptions(), prefixes_shared=False)["decoding"] == 2 * 4 * 8 * 10
    assert memory(TrainerOptions())["decoding"] == 0


@pytest.fixture
def plan(tmp_path, small_model_path):
    row = {"context": "One two three. " * 40, "input": "Which number comes last?", "answers": ["three"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {small_model_path}}}\n"
        "agent: {name: memory_agent, chunk_tokens: 100, memory_tokens: 16, answer_tokens: 8}\n"
        "env: longcontext\n"
        "data: {train: rows.jsonl}\n"
        "train: {name: grpo, steps: 7, prompts_per_step: 3, group_size: 5}\n"
    )

    def planned(*overrides):
        return make_plan(load_config(tmp_path / "run.yaml", overrides))

    return planned


def test_the_plan_counts_trajectories_turns_and_conversations(plan, small_model_path):
    from transformers import AutoTokenizer

    found = plan()
    work = dict(found.work)
    tokens = len(
        AutoTokenizer.from_pretrained(small_model_path)("One two three. " * 40, add_special_tokens=False)["input_ids"]
    )
    turns = -(-tokens // 100) + 1
    assert found.problems == ()
    assert work["optimizer steps"] == "7"
    assert work["prompts x group size"] == "3 x 5 = 15 trajectories per rollout"
    assert work["turns per trajectory"] == f"{turns:.1f}"
    assert work["conversations per optimizer step"] == f"{15 * turns}"
    assert work["trained steps of modules"] == "update, answer"


def test_conversations_longer_than_the_models_positions_are_impossible(plan):
    found = plan("agent.memory_tokens=4000")
    assert any("does not fit the model's 2,048 positions" in problem for problem in found.problems)


def test_a_run_in_which_no_module_is_trained_is_impossible(plan):
    found = plan("agent.interface=inference")
    assert "no module is trained: every one has interface: inference" in found.problems


def test_a_plan_that_does_not_fit_says_how_much_is_missing_and_what_would_help(plan):
    found = plan("train.micro_batch_tokens=2000000000")
    assert any("GiB are needed" in problem and "train.micro_batch_tokens" in problem for problem in found.problems)


# An A100 or H100 of 80 GB says it has this much.
GPU = Device("a GPU of 80 GB", round(79.2 * 2**30), cuda=True)
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def published(tmp_path):
    """The plan of a published config with long documents for data, for a GPU of 80 GB."""
    row = {"context": "One two three. " * 5000, "input": "Which number comes last?", "answers": ["three"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")

    def planned(name, *overrides):
        return make_plan(load_config(CONFIGS / name, [f"data.train={tmp_path / 'rows.jsonl'}", *overrides]), GPU)

    return planned


@pytest.mark.parametrize("name", ["memagent_qwen3_4b.yaml", "memagent_qwen3_1.7b.yaml"])
def test_the_published_configs_fit_80_gigabytes_with_room_for_driver_and_gaps(published, name):
    found = published(name)
    assert not [problem for problem in found.problems if "GiB are needed" in problem]
    assert peak_bytes(found.memory) < 0.94 * GPU.capacity
    assert found.memory["key-value cache"] > 0


def test_the_plan_counts_all_that_a_rollout_holds(published):
    memory = published("memagent_qwen3_4b.yaml").memory
    assert memory["key-value cache"] == 196608 * 147456
    # A bfloat16 copy of 4,022.5 million parameters while sampling.
    assert memory["decoding"] == pytest.approx(2 * 4022.5e6, rel=1e-4)
    # Of each of 16,384 prompt tokens the keys and values, and 2 x (2 x 9,728 + 2 x 4,096 + 3 x 2,560) bytes of a layer.
    assert memory["prefill"] == 16384 * (147456 + 70656)
    # Without the copy, keys come in float32 first.
    converting = published("memagent_qwen3_4b.yaml", "engine.weight_copy=false").memory
    assert converting["decoding"] == 0 and converting["prefill"] == 16384 * (2 * 147456 + 70656)
    adapters = published("memagent_qwen3_4b.yaml", "train.lora.rank=16").memory
    # All but the embedding of 151,936 x 2,560, which is the head too.
    assert adapters["decoding"] == memory["decoding"] - 2 * 151936 * 2560


def test_the_plan_counts_the_caches_of_frozen_models(published):
    reader = "engines.reader={kind: hf, model: {path: Qwen/Qwen3-1.7B, dtype: bfloat16}, max_batch_tokens: 32768}"
    memory = published("memagent_qwen3_4b.yaml", reader).memory
    # 114,688 bytes of keys and values for a token, and a pass of 16,384 with 2 x (2 x 6,144 + 2 x 2,048 + 3 x 2,048).
    assert memory["caches of frozen models"] == 32768 * 114688 + 16384 * (114688 + 45056)
    assert "caches of frozen models" not in published("memagent_qwen3_4b.yaml").memory


@pytest.mark.parametrize("name", ["memory_r1.yaml", "memory_r1_answer.yaml", "rmm.yaml"])
def test_published_configs_with_a_frozen_model_fit_80_gigabytes(published, name):
    found = published(name, "data.train={name: conversations, rows: 4}", "data.eval={}")
    assert not [problem for problem in found.problems if "GiB are needed" in problem]
    assert found.memory["caches of frozen models"] > 9 * 2**30


def test_full_fine_tuning_of_4b_with_float32_moments_fits_80_gigabytes_only_offloaded(published):
    on_device = published("memagent_qwen3_4b.yaml", "train.optimizer.kind=adamw")
    assert any("80 GB has 79.2 GiB" in problem for problem in on_device.problems)
    offloaded = published("memagent_qwen3_4b.yaml", "train.optimizer.kind=adamw_offload")
    assert not any("80 GB has" in problem for problem in offloaded.problems)
    # 4,022.5 million parameters with 8 bytes each.
    assert dict(offloaded.work)["optimizer"] == "adamw_offload, 30.0 GiB of moments in the host's memory"
    assert offloaded.memory["optimizer"] == 0


def test_the_plan_says_what_takes_most_of_the_largest_phase(published):
    assert published("memagent_qwen3_1.7b.yaml").most().startswith("the rollout, key-value cache ")
    fewer = published("memagent_qwen3_4b.yaml", "engine.max_batch_tokens=65536")
    assert fewer.most().startswith("the training pass, ")


def test_a_peak_that_leaves_no_room_for_gaps_is_warned_of(published):
    found = published("memagent_qwen3_4b.yaml", "engine.max_batch=100", "engine.max_batch_tokens=250000")
    assert any("leaves less than 6%" in warning for warning in found.warnings)


def test_grpo_options_say_which_updates_a_rollout_makes(plan):
    work = dict(plan("train.minibatches=3", "train.epochs=2").work)
    assert work["optimizer steps per rollout"] == "6"
    assert GrpoOptions().minibatches * GrpoOptions().epochs == 1


def test_a_plan_can_be_made_for_a_gpu_that_is_not_here(tmp_path, capsys, small_model_path):
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {small_model_path}}}\n"
        "agent: {name: memory_agent, chunk_tokens: 100, memory_tokens: 16, answer_tokens: 8}\n"
        "env: longcontext\ndata: {train: {name: facts, rows: 4}}\n"
        "train: {name: grpo, optimizer: {kind: auto}}\n"
    )
    assert run(["train", str(tmp_path / "run.yaml"), "--dry-run", "--gpu-gib", "24"]) == 0
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if line != line.rstrip()] == []
    shown = " ".join(output.split())
    assert "Memory against a GPU of 24 GiB" in shown and "optimizer adamw_8bit" in shown
    assert run(["train", str(tmp_path / "run.yaml"), "--gpu-gib", "24"]) == 2
    assert "--gpu-gib needs --dry-run" in capsys.readouterr().err

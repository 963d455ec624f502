"""What `--dry-run` says: the work of a step, memory by component, and why a plan is impossible."""

import json

import pytest

from memfactory.config import load_config
from memfactory.config.training import GrpoOptions, LoraOptions, OptimizerOptions, TrainerOptions
from memfactory.engines.loading import load_architecture
from memfactory.engines.options import ModelConfig
from memfactory.trainers.footprint import (
    Architecture,
    adapter_parameters,
    architecture,
    memory_by_component,
    peak_bytes,
)
from memfactory.trainers.plan import make_plan

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
    return memory_by_component(SMALL, options, **settings)


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


def test_full_fine_tuning_keeps_float32_weights_gradients_and_moments():
    found = memory(TrainerOptions())
    assert (found["weights"], found["gradients"], found["optimizer"], found["reference"]) == (4000, 4000, 8000, 0)
    mixed = memory(TrainerOptions(), dtype="bfloat16", reference=True)
    assert (mixed["weights"], mixed["reference"]) == (4000 + 2000, 2000)


def test_eight_bit_moments_take_two_bytes_a_parameter_and_auto_means_them_on_cuda():
    eight = TrainerOptions(optimizer=OptimizerOptions(kind="adamw_8bit"))
    auto = TrainerOptions(optimizer=OptimizerOptions(kind="auto"))
    assert memory(eight)["optimizer"] == 2000
    assert (memory(auto)["optimizer"], memory(auto, cuda=True)["optimizer"]) == (8000, 2000)


def test_adapters_alone_have_gradients_and_moments():
    # A layer's linear maps, in + out: 8+8, 8+4, 8+4, 8+8, 8+16, 8+16, 16+8 = 128; two layers, rank 3.
    assert adapter_parameters(SMALL, 3) == 2 * 3 * 128 == 768
    found = memory(TrainerOptions(lora=LoraOptions(rank=3)), dtype="bfloat16", reference=True)
    assert found["weights"] == 2 * 1000 + 4 * 768
    assert (found["gradients"], found["optimizer"], found["reference"]) == (4 * 768, 8 * 768, 0)


def test_the_peak_counts_the_rollouts_cache_or_the_training_pass_not_both():
    parts = {"weights": 1, "gradients": 2, "optimizer": 3, "reference": 4}
    assert peak_bytes({**parts, "key-value cache": 50, "activations": 20, "logits": 7}) == 10 + 50
    assert peak_bytes({**parts, "key-value cache": 5, "activations": 20, "logits": 7}) == 10 + 27


def test_gradient_checkpointing_stores_one_state_a_layer():
    stored = memory(TrainerOptions(gradient_checkpointing=True))["activations"]
    whole = memory(TrainerOptions())["activations"]
    assert stored < whole


@pytest.fixture
def plan(tmp_path, small_model_path):
    row = {"context": "One two three. " * 40, "input": "Which number comes last?", "answers": ["three"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {small_model_path}}}\n"
        "agent: {name: memory_agent, chunk_tokens: 100, memory_tokens: 16, answer_tokens: 8}\n"
        "env: longcontext\n"
        "data: {train: rows.jsonl}\n"
        "train: {name: grpo, steps: 7, prompts_per_step: 3, generations: 5}\n"
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
    assert work["prompts x generations"] == "3 x 5 = 15 trajectories per rollout"
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


def test_grpo_options_say_which_updates_a_rollout_makes(plan):
    work = dict(plan("train.minibatches=3", "train.epochs=2").work)
    assert work["optimizer steps per rollout"] == "6"
    assert GrpoOptions().minibatches * GrpoOptions().epochs == 1

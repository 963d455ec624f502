"""The plan of one of several processes: a part of the model, and the whole copy that it samples from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memfactory.config.grpo import GrpoOptions
from memfactory.config.sft import SftOptions
from memfactory.plan.footprint import Architecture, Load, memory_by_component, phase_components
from memfactory.plan.shards import is_sharded, loading_bytes, per_process

# 4 layers of 1000 parameters behind an embedding of 10 x 20, tied to the head.
SIZES = Architecture(
    parameters=4200,
    head_parameters=200,
    layers=4,
    hidden=20,
    intermediate=40,
    vocabulary=10,
    attention_width=20,
    kv_width=20,
    max_positions=64,
)
LOAD = Load(dtype="bfloat16", kv_tokens=50, micro_tokens=8, reference=True, cuda=True)


def planned(processes: int, **options: object) -> dict[str, int]:
    chosen = GrpoOptions(shard="fsdp2", loss={"kl_coef": 0.1}, **options)
    return per_process(memory_by_component(SIZES, chosen, LOAD), SIZES, chosen, LOAD, processes)


def test_full_training_is_divided_by_the_processes():
    memory = planned(4)
    # Float32 weights, two moments and gradients of 4200 parameters: 4, 8 and 4 bytes each, by 4.
    assert (memory["weights"], memory["optimizer"], memory["gradients"]) == (4200, 8400, 4200)
    # The reference: bfloat16, its embedding in float32: (2 x 4000 + 4 x 200) / 4.
    assert memory["reference"] == 2200
    # In bfloat16 the embedding and three layers; the gradient of a layer; three times a layer in float32.
    assert memory["gathered layers"] == 2 * (200 + 3000) + 2 * 1000 + 12 * 1000
    assert memory["whole copy for sampling"] == 2 * 4200
    assert memory["weights as computed with"] == 0


def test_adapters_stay_whole_and_their_base_is_divided():
    whole = memory_by_component(SIZES, GrpoOptions(lora={"rank": 2}), LOAD)
    memory = planned(4, lora={"rank": 2})
    assert memory["weights"] == whole["weights"] - 2 * 4200 + 2 * 1050
    assert (memory["optimizer"], memory["gradients"]) == (whole["optimizer"], whole["gradients"])
    assert memory["gathered layers"] == 2 * (200 + 3000)


def test_the_whole_copy_is_there_in_the_rollout_alone():
    phases = phase_components(planned(4))
    assert "whole copy for sampling" in phases["rollout"] and "gathered layers" not in phases["rollout"]
    assert "whole copy for sampling" not in phases["training pass"] and "gathered layers" in phases["training pass"]


@pytest.mark.parametrize(
    ("shard", "processes", "sharded"), [("fsdp2", 2, True), ("fsdp2", 1, False), ("none", 2, False)]
)
def test_one_process_holds_the_whole_model(shard, processes, sharded):
    assert is_sharded(GrpoOptions(shard=shard), processes) is sharded


def test_host_memory_holds_the_model_and_its_reference_before_they_are_divided():
    assert loading_bytes(SIZES, GrpoOptions(loss={"kl_coef": 0.1}), "bfloat16") == 8 * 4200
    assert loading_bytes(SIZES, GrpoOptions(lora={"rank": 2}), "bfloat16") == 2 * 4200


def test_the_whole_copy_is_there_also_if_a_server_samples():
    # The key-value cache is the server's, but it is sent the weights of the copy.
    remote = replace(LOAD, kv_tokens=0)
    chosen = GrpoOptions(shard="fsdp2")
    memory = per_process(memory_by_component(SIZES, chosen, remote), SIZES, chosen, remote, 4)
    assert memory["whole copy for sampling"] == 2 * 4200
    learned = SftOptions(shard="fsdp2")
    memory = per_process(memory_by_component(SIZES, learned, remote), SIZES, learned, remote, 4)
    assert memory["whole copy for sampling"] == 0

"""Training passes on an emulated GPU: all tensors there, the gradient of the CPU, few waits and a bounded number of
launches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.emulated_cuda import emulated_cuda, on_cuda
from memfactory.config.grpo import GrpoOptions
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.policy import Policy
from small_policy import some_turns

WAYS = {
    "float32": ("float32", {}),
    "autocast": ("bfloat16", {}),
    "bfloat16 weights": ("bfloat16", {"master_weights": "bfloat16_stochastic"}),
    "adapters": ("bfloat16", {"lora": {"rank": 4}}),
    "adapters with dropout and checkpointing": (
        "bfloat16",
        {"lora": {"rank": 4, "dropout": 0.1}, "gradient_checkpointing": True},
    ),
    "checkpointing, with a reference": ("bfloat16", {"gradient_checkpointing": True, "loss": {"kl_coef": 0.1}}),
    "packed, many passes": ("bfloat16", {"packing": "packed", "micro_batch_tokens": 40}),
    "padded": ("bfloat16", {"packing": "padded"}),
}

# Launches of a step with two layers. Norms and rotary embeddings by parts would be beyond them.
LAUNCHES = dict(zip(WAYS, (530, 820, 880, 1040, 1360, 940, 1380, 630), strict=True))


def policy_of(path: Path, dtype: str, options: dict[str, object], *, cuda: bool) -> Policy:
    config = ModelConfig(path=str(path), dtype=dtype, device="cpu")
    train = GrpoOptions(**({"optimizer": {"kind": "adamw"}} | options))
    model = load_model(config, training=True, frozen_base=train.lora is not None, masters=train.masters)
    return Policy(on_cuda(model) if cuda else model, load_chat(config), config, train)


def scored(policy: Policy) -> list[TrainingTurn]:
    """Five turns with the log-probabilities that a step has of them before its gradient."""
    turns = some_turns()[:5]
    turns = policy.score_old(turns) if policy.reference is None else policy.score_reference(turns)
    return [replace(turn, sampler_logprobs=turn.old_logprobs) for turn in turns]


@pytest.mark.parametrize("way", WAYS)
def test_a_step_stays_on_the_gpu_with_the_gradient_of_the_cpu(small_model_path: Path, way: str):
    dtype, options = WAYS[way]
    with emulated_cuda() as device:
        policy = policy_of(small_model_path, dtype, options, cuda=True)
        # On CUDA tree attention has kernels in half precision alone.
        packing = "padded" if dtype == "float32" else options.get("packing", "shared")
        assert policy.forward.feeding.packing == packing
        device.reset()
        measures = policy.update(scored(policy))
        waits, kernels = device.waits.total(), device.kernels.total()
    assert kernels <= LAUNCHES[way], device.kernels
    # Of every pass a few, for its log-probabilities and measures, and not one of every token or layer.
    assert waits <= (30 if "passes" in way else 14), device.waits
    expected = policy_of(small_model_path, dtype, options, cuda=False)
    norm = expected.update(scored(expected))["grad_norm"]
    if "dropout" not in way:
        assert measures["grad_norm"] == pytest.approx(norm, rel=1e-4 if dtype == "float32" else 0.03)

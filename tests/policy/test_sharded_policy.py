"""A policy that is sharded over processes takes the steps of one that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memfactory.config.grpo import GrpoOptions
from memfactory.environment import process_count, process_rank
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.policy import Policy
from memfactory.policy.sharded import ShardedPolicy
from memfactory.policy.shards import whole
from processes import in_processes
from small_policy import some_turns

LORA = {"rank": 4, "alpha": 8}
LOSS = {"weighting": "trajectory", "kl_coef": 0.05, "sampler_correction": "token_truncate", "clip_high": 0.28}
KINDS = {
    "full": {},
    "checkpointed": {"gradient_checkpointing": True, "packing": "packed"},
    "lora": {"lora": LORA},
    "padded": {"packing": "padded", "lora": LORA, "trim_last_layer": False},
}
# Epsilon keeps Adam from dividing small gradients by themselves, which would blow their rounding up.
OPTIMIZER = {"learning_rate": 1e-2, "epsilon": 1e-2, "max_grad_norm": 0.5}


def policy_of(path: Path, kind: str) -> Policy:
    """The model at `path` as a policy, sharded if this is one of several processes."""
    options = GrpoOptions(loss=LOSS, optimizer=OPTIMIZER, micro_batch_tokens=60, shard="fsdp2", **KINDS[kind])
    config = ModelConfig(path=str(path), device="cpu")
    model = load_model(config, training=True, frozen_base=options.lora is not None)
    return (ShardedPolicy if process_count() > 1 else Policy)(model, load_chat(config), config, options)


def share(policy: Policy, turns: list[TrainingTurn], step: int) -> list[TrainingTurn]:
    """The turns of this process's prompts, dealt like tasks; in the second step the last process has none."""
    if step == 1 and policy.process_count > 1:
        return turns if policy.process_index == 0 else []
    return [turn for turn in turns if turn.prompt % policy.process_count == policy.process_index]


def three_steps(path: Path, kind: str) -> dict[str, object]:
    """Norms, losses and log-probabilities of three steps, and the weights after them."""
    policy = policy_of(path, kind)
    measured, logprobs = [], {}
    for step in range(3):
        turns = share(policy, some_turns(step), step)
        turns = policy.score_reference(policy.score_old(turns))
        logprobs |= {(step, turn.prompt_ids): (turn.old_logprobs, turn.reference_logprobs) for turn in turns}
        measured.append(policy.update(turns))
    weights = {name: whole(value, value.dtype).detach() for name, value in policy.network.named_parameters()}
    return {"measured": measured, "logprobs": logprobs, "weights": weights}


def said(folder: Path) -> str:
    """What the processes printed."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.txt")))


def run_one(path: Path, output: Path) -> None:
    torch.save(three_steps(path, "full"), output / f"{process_rank()}-of-{process_count()}.pt")


def run_all(path: Path, output: Path) -> None:
    results = {kind: three_steps(path, kind) for kind in KINDS}
    torch.save(results, output / f"{process_rank()}-of-{process_count()}.pt")


def assert_steps(processes: list[dict], alone: dict) -> None:
    """Each process measured the steps of one alone, and has its weights."""
    for one in processes:
        for expected, measured in zip(alone["measured"], one["measured"], strict=True):
            assert measured == pytest.approx(expected, rel=1e-5, abs=1e-6)
        for name, expected in alone["weights"].items():
            assert float((one["weights"][name] - expected).norm() / expected.norm()) < 1e-5, name


@pytest.fixture(scope="module")
def results(small_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The results of one process, and of each of two."""
    output = tmp_path_factory.mktemp("sharded")
    assert in_processes(2, lambda rank: run_all(small_model_path, output), output) == [0, 0], said(output)
    run_all(small_model_path, output)
    return [torch.load(output / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2")]


@pytest.mark.parametrize("kind", KINDS)
def test_two_sharded_processes_take_the_steps_of_one(kind: str, results: list[dict]) -> None:
    alone, *processes = (result[kind] for result in results)
    assert_steps(processes, alone)
    given = processes[0]["logprobs"] | processes[1]["logprobs"]
    assert given.keys() == alone["logprobs"].keys()
    for place, expected in alone["logprobs"].items():
        for one, other in zip(expected, given[place], strict=True):
            assert one == pytest.approx(other, abs=2e-5)


@pytest.mark.slow
def test_four_sharded_processes_take_the_steps_of_one(small_model_path: Path, tmp_path: Path) -> None:
    # Three prompts: one process has none in the first step and the last, and three have none in the second.
    assert in_processes(4, lambda rank: run_one(small_model_path, tmp_path), tmp_path) == [0] * 4, said(tmp_path)
    run_one(small_model_path, tmp_path)
    assert_steps([torch.load(tmp_path / f"{rank}-of-4.pt") for rank in range(4)], torch.load(tmp_path / "0-of-1.pt"))

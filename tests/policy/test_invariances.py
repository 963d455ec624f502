"""The gradient of an optimizer step does not depend on how its turns are batched, ordered, padded or spread."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from memfactory.policy.batch import TrainingTurn, token_weights
from memfactory.policy.forward import MicroBatch, collate
from memfactory.policy.layout import lay_out
from memfactory.policy.objective import token_losses
from memfactory.policy.policy import Policy
from small_policy import gradients, largest_difference, small_policy, some_turns

WEIGHTINGS = ("token", "turn", "trajectory", "prompt", "constant")
# float32 sums in another order: a few units in the last place of the largest entry.
ROUNDING = 2e-6


def loss(weighting: str) -> dict[str, object]:
    """A loss in which every term counts: clip, KL, correction."""
    return {
        "weighting": weighting,
        "constant_length": 12,
        "kl_coef": 0.05,
        "sampler_correction": "token_truncate",
        "clip_high": 0.28,
    }


def scored(policy: Policy) -> list[TrainingTurn]:
    """Turns whose old log-probabilities differ from the policy's, so that ratios and clips are not trivial."""
    draw = Random(1)
    turns = policy.score_reference(policy.score_old(some_turns()))
    return [
        replace(
            turn,
            old_logprobs=tuple(value + draw.uniform(-0.3, 0.3) for value in turn.old_logprobs),
            reference_logprobs=tuple(value + draw.uniform(-0.3, 0.3) for value in turn.reference_logprobs),
        )
        for turn in turns
    ]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_gradient_knows_neither_micro_batches_nor_order(small_model_path: Path, weighting: str) -> None:
    policy = small_policy(small_model_path, loss=loss(weighting))
    turns = scored(policy)
    measured = policy.backward(turns)
    expected = gradients(policy)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    shuffled = list(turns)
    Random(2).shuffle(shuffled)
    for budget, given in ((1, turns), (40, turns), (90, shuffled), (100000, shuffled)):
        policy.forward.micro_batch_tokens = budget
        assert policy.backward(given) == pytest.approx(measured, rel=1e-5, abs=1e-6)
        assert largest_difference(expected, gradients(policy)) < ROUNDING


def test_the_gradient_is_that_of_one_unpadded_turn_at_a_time(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, loss=loss("trajectory"))
    turns = scored(policy)
    policy.backward(turns)
    expected = gradients(policy)
    policy.optimizer.zero_grad()
    for turn, weight in zip(turns, token_weights(turns, policy.loss), strict=True):
        total(policy, collate([turn], [weight], lay_out([turn], "shared", policy.chat.pad_id))).backward()
    assert largest_difference(expected, gradients(policy)) < ROUNDING


def test_the_gradient_does_not_see_more_padding_or_what_it_is_made_of(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, loss=loss("turn"))
    turns = scored(policy)
    policy.backward(turns)
    expected = gradients(policy)
    policy.optimizer.zero_grad()
    batch = collate(turns, token_weights(turns, policy.loss), lay_out(turns, "padded", policy.chat.pad_id))
    width = batch.layout.input_ids.shape[1]
    # Seven more columns of padding made of another token: a row's place moves by seven for each row before it.
    ids = torch.nn.functional.pad(batch.layout.input_ids, (0, 7), value=5)
    sources = batch.layout.sources + 7 * (batch.layout.sources // width)
    wide = replace(
        batch, layout=replace(batch.layout, input_ids=ids, sources=sources, last_layer_places=sources.unique())
    )
    total(policy, wide).backward()
    assert largest_difference(expected, gradients(policy)) < ROUNDING


def total(policy: Policy, batch: MicroBatch) -> torch.Tensor:
    """The weighed loss of one batch."""
    logprobs, _ = policy.forward.logprobs(policy.model, batch, policy.temperature)
    losses = token_losses(logprobs, batch.inputs, policy.loss)
    return (batch.weights[:, None] * losses.loss).sum()


def of_this_process(policy: Policy, turns: list[TrainingTurn]) -> list[TrainingTurn]:
    """Of two processes the first has two of the three prompts, the second the last; one process has them all."""
    if policy.process_count == 1:
        return turns
    return [turn for turn in turns if turn.prompt in ((0, 1), (2,))[policy.process_index]]


def write_gradients(model: Path, output: Path) -> None:
    """For every weighting, the gradient and measures of one step and the weights after two, from this process's share.

    The second step leaves process 1 without any turn.
    """
    results = {}
    for weighting in WEIGHTINGS:
        # Epsilon keeps Adam from dividing small gradients by themselves, which would blow their rounding up.
        settings = {"optimizer": {"learning_rate": 1e-2, "epsilon": 1e-2}, "micro_batch_tokens": 40}
        # A seed of its own: adapters that differ at first are made equal by the broadcast.
        rank = int(os.environ.get("RANK", "0"))
        policy = small_policy(model, loss=loss(weighting), lora={"rank": 4, "alpha": 8}, seed=rank, **settings)
        turns = scored(policy)
        share = of_this_process(policy, turns)
        measured = policy.backward(share)
        gradient = gradients(policy)
        policy.update(share)
        policy.update([turn for turn in share if turn.prompt == 0])
        results[weighting] = (gradient, measured, [p.detach().clone() for p in policy.trained])
    torch.save(results, output / f"{policy.process_index}-of-{policy.process_count}.pt")
    policy.wait_for_everyone()


@pytest.mark.slow
def test_two_processes_give_the_gradient_and_the_weights_of_one(small_model_path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [__file__, str(small_model_path), str(tmp_path)]
    subprocess.run([*torchrun, *script], check=True, env=environment, timeout=200)
    write_gradients(small_model_path, tmp_path)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    for weighting in WEIGHTINGS:
        expected, measured, weights = alone[weighting]
        for given, counted, changed in (first[weighting], second[weighting]):
            assert largest_difference(expected, given) < ROUNDING
            assert counted == pytest.approx(measured, rel=1e-5, abs=1e-6)
            assert largest_difference(weights, changed) < ROUNDING
        assert all(torch.equal(a, b) for a, b in zip(first[weighting][2], second[weighting][2], strict=True))


if __name__ == "__main__":
    write_gradients(Path(sys.argv[1]), Path(sys.argv[2]))

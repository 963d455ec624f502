"""A small random model wrapped as a policy, and turns to train it on: what several tests start from."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from memfactory.config.grpo import GrpoOptions
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.policy import Policy


def small_policy(path: Path, dtype: str = "float32", *, seed: int = 0, **options: object) -> Policy:
    """The model at `path` on the CPU as a policy under these options of GRPO."""
    config = ModelConfig(path=str(path), dtype=dtype, device="cpu")
    given = GrpoOptions(**options)
    model = load_model(config, training=True, frozen_base=given.lora is not None, masters=given.masters)
    return Policy(model, load_chat(config), config, given, seed=seed)


def some_turns(seed: int = 0, *, sampled: bool = True) -> list[TrainingTurn]:
    """Nine turns of three prompts and six trajectories with prompts of 2 to 9 and replies of 1 to 12 tokens.

    The first and the last prompt have two trajectories each that are one or two turns long. Log-probabilities at
    sampling are made up.
    """
    draw = random.Random(seed)
    places = [(0, 0), (0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (4, 2), (5, 2), (5, 2)]
    turns = []
    for trajectory, prompt in places:
        prompt_ids = tuple(draw.randrange(3, 300) for _ in range(draw.randrange(2, 10)))
        reply_ids = tuple(draw.randrange(3, 300) for _ in range(draw.randrange(1, 13)))
        logprobs = tuple(-draw.uniform(4, 8) for _ in reply_ids)
        turns.append(
            TrainingTurn(
                prompt_ids,
                reply_ids,
                1.0 if trajectory % 2 else -0.75,
                trajectory,
                prompt,
                "answer",
                sampler_logprobs=logprobs if sampled else None,
            )
        )
    return turns


def gradients(policy: Policy) -> list[torch.Tensor]:
    """A copy of every trained parameter's gradient."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.trained]


def largest_difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """The largest difference between two lists of tensors, relative to the largest entry of the first."""
    scale = max(float(tensor.detach().abs().max()) for tensor in first)
    return max(float((a - b).detach().abs().max()) for a, b in zip(first, second, strict=True)) / scale

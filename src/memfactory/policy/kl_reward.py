"""The KL to the reference as a part of the reward, in place of a term in the loss (as in RLHF, arXiv 1909.08593)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from accelerate.utils import gather_object

from memfactory.config.losses import LossOptions
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.kl_control import KlCoefficient
from memfactory.policy.objective import kl_estimate
from memfactory.types import Group, Reward, Trajectory


class Scores(Protocol):
    """The parts of the policy that the penalty uses."""

    loss: LossOptions
    kl: KlCoefficient

    def score_old(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """Log-probabilities under the policy before the update."""

    def score_reference(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """Log-probabilities under the reference."""


class KlPenalty:
    """This process's groups with rewards r' = r - beta KL, KL being summed over the trained tokens of a trajectory.

    The KL of a token is estimated by `kl_estimator` from log pi_old and log pi_ref; beta is the policy's KL
    coefficient. A module step with a reward of its own is charged for its own tokens only. Unknown stays unknown.
    """

    def __init__(self, policy: Scores, groups: Sequence[Group]) -> None:
        turns = [turn for number, group in enumerate(groups) for turn in _trainable(number, group)]
        scored = policy.score_reference(policy.score_old(turns))
        # A turn's log-probabilities depend on its ids alone.
        self.old = {(turn.prompt_ids, turn.reply_ids): turn.old_logprobs for turn in scored}
        sums = {(turn.prompt, turn.trajectory): dict[str, float]() for turn in scored}
        for turn in scored:
            steps = sums[turn.prompt, turn.trajectory]
            steps[turn.step] = steps.get(turn.step, 0.0) + divergence(turn, policy.loss)
        self.beta = policy.kl.value
        self.tokens = sum(len(turn.reply_ids) for turn in scored)
        self.sum = math.fsum(value for steps in sums.values() for value in steps.values())
        self.trajectories = sum(len(group.trajectories) for group in groups)
        self.credited = [
            replace(
                group,
                trajectories=tuple(
                    charged(trajectory, sums.get((number, place), {}), self.beta)
                    for place, trajectory in enumerate(group.trajectories)
                ),
            )
            for number, group in enumerate(groups)
        ]

    def with_old_logprobs(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """Turns of these groups with the log-probabilities that the penalty was computed from."""
        return [replace(turn, old_logprobs=self.old[turn.prompt_ids, turn.reply_ids]) for turn in turns]

    def measured(self) -> dict[str, float]:
        """The mean KL of a token and the mean penalty of a trajectory, over all processes; all must call it."""
        rows = gather_object([(self.sum, self.tokens, self.trajectories)])
        total, tokens, trajectories = (sum(row[place] for row in rows) for place in range(3))
        if tokens == 0:
            return {}
        return {"kl": total / tokens, "kl_penalty": self.beta * total / trajectories}


def charged(trajectory: Trajectory, divergences: dict[str, float], beta: float) -> Trajectory:
    """The trajectory with the KL of its steps, `beta` times, taken off its reward."""
    reward = trajectory.reward
    whole = beta * math.fsum(divergences.values())
    steps = {step: _less(value, beta * divergences.get(step, 0.0)) for step, value in reward.steps.items()}
    return replace(trajectory, reward=Reward(_less(reward.total, whole), reward.parts, steps))


def divergence(turn: TrainingTurn, loss: LossOptions) -> float:
    """The KL estimates of a scored turn's tokens, summed."""
    old = torch.tensor(turn.old_logprobs, dtype=torch.float64)
    reference = torch.tensor(turn.reference_logprobs, dtype=torch.float64)
    return float(kl_estimate(old, reference, loss.kl_estimator).sum())


def _less(reward: float | None, charge: float) -> float | None:
    return None if reward is None else reward - charge


def _trainable(number: int, group: Group) -> list[TrainingTurn]:
    """Every trainable turn of the group, also where rewards are equal or unknown; `trajectory` is its place in it."""
    return [
        TrainingTurn(tokens.prompt_ids, tokens.reply_ids, 0.0, place, number, turn.step)
        for place, trajectory in enumerate(group.trajectories)
        for turn in trajectory.turns
        if turn.trainable and (tokens := turn.reply.tokens) is not None and tokens.reply_ids
    ]

"""The batch of an optimizer step: groups of trajectories to training turns, and the weight of each turn's tokens.

A group whose known rewards are all equal has no advantage: its turns are dropped here, from the KL term and from every
count as well, unless `count_zero_variance` keeps them. Dropped are also turns of a trajectory whose reward is unknown,
turns without a single token, and, with `mask_truncated`, turns cut by length. The weights count the remaining turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from memfactory.config.grpo import GrpoOptions
from memfactory.config.losses import LossOptions
from memfactory.policy.advantages.base import StepRewards, checked_advantages, make_estimator
from memfactory.types import Group


@dataclass(frozen=True)
class TrainingTurn:
    """One conversation to train on: `prompt_ids` (P) as fed, `reply_ids` (R) as sampled, and its credit.

    `sampler_logprobs`, `old_logprobs` and `reference_logprobs` (R, nats) are None before they are computed; so are the
    `marks` (R) of tokens that the objective chooses over the whole optimizer step. `trajectory` numbers the trajectory
    of the turn, unique within one process. `prompt` numbers its group, by the group's place if it has one, so that all
    processes number alike.
    """

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    advantage: float
    trajectory: int
    prompt: int
    step: str
    truncated: bool = False
    sampler_logprobs: tuple[float, ...] | None = None
    old_logprobs: tuple[float, ...] | None = None
    reference_logprobs: tuple[float, ...] | None = None
    marks: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.reply_ids:
            raise ValueError(f"a training turn needs prompt and reply tokens (step {self.step!r})")
        for name in ("sampler_logprobs", "old_logprobs", "reference_logprobs", "marks"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.reply_ids):
                raise ValueError(f"{len(self.reply_ids)} reply ids but {len(values)} {name} (step {self.step!r})")

    @property
    def length(self) -> int:
        """Prompt and reply tokens together."""
        return len(self.prompt_ids) + len(self.reply_ids)


def step_rewards(groups: Sequence[Group]) -> dict[str, list[float]]:
    """The known rewards of every trained step over all trajectories, for `normalize: batch_std`."""
    rewards: dict[str, list[float]] = {}
    for group in groups:
        for step in trained_steps(group):
            all_rewards = (trajectory.reward.of_step(step) for trajectory in group.trajectories)
            rewards.setdefault(step, []).extend(reward for reward in all_rewards if reward is not None)
    return rewards


def step_advantages(
    group: Group, options: GrpoOptions, batch_rewards: Mapping[str, Sequence[float]] | None = None
) -> dict[str, list[float | None]]:
    """For each step with trainable turns, the advantage of every trajectory of the group (None: reward unknown).

    All trajectories count in a step's mean, also those that never came to that step. `batch_rewards` are the rewards
    of the whole batch (`step_rewards`) and needed for `normalize: batch_std` only; None: those of this group.
    """
    estimator = make_estimator(options)
    rewards = {step: tuple(t.reward.of_step(step) for t in group.trajectories) for step in trained_steps(group)}
    whole = step_rewards([group]) if batch_rewards is None else batch_rewards
    return {
        step: checked_advantages(estimator, StepRewards(step, step_values, tuple(whole.get(step, ())), group))
        for step, step_values in rewards.items()
    }


def has_variance(group: Group) -> bool:
    """Whether the group can train anything: some trained step's known rewards differ."""
    rewards = step_rewards([group])
    return any(min(values) != max(values) for values in rewards.values() if values)


def teaches(group: Group, options: GrpoOptions, batch_rewards: Mapping[str, Sequence[float]] | None = None) -> bool:
    """Whether some trajectory of the group has an advantage that is not 0."""
    return any(any(values) for values in step_advantages(group, options, batch_rewards).values())


def training_turns(
    groups: Sequence[Group],
    options: GrpoOptions,
    batch_rewards: Mapping[str, Sequence[float]] | None = None,
) -> list[TrainingTurn]:
    """The turns that train, each stamped with the advantage of its (group, step, trajectory).

    The top of this file lists the turns that are dropped. A turn of advantage 0 in a group whose rewards differ stays,
    since it counts in the weights and in the KL term. With several processes `batch_rewards` are the merged
    `step_rewards` of all of them.
    """
    if batch_rewards is None:
        batch_rewards = step_rewards(groups)
    turns: list[TrainingTurn] = []
    trajectories = 0
    for number, group in enumerate(groups):
        prompt = number if group.place is None else group.place
        credit = step_advantages(group, options, batch_rewards)
        training = {step: values for step, values in credit.items() if any(values) or options.count_zero_variance}
        for index, trajectory in enumerate(group.trajectories):
            for turn in trajectory.turns:
                tokens = turn.reply.tokens
                if not turn.trainable or tokens is None or not tokens.reply_ids or turn.step not in training:
                    continue
                advantage = training[turn.step][index]
                truncated = turn.reply.stop == "length"
                if advantage is None or (truncated and options.loss.mask_truncated):
                    continue
                turns.append(
                    TrainingTurn(
                        prompt_ids=tokens.prompt_ids,
                        reply_ids=tokens.reply_ids,
                        advantage=advantage,
                        trajectory=trajectories + index,
                        prompt=prompt,
                        step=turn.step,
                        truncated=truncated,
                        sampler_logprobs=tokens.logprobs,
                    )
                )
        trajectories += len(group.trajectories)
    return turns


def trained_steps(group: Group) -> list[str]:
    """The steps of the group's trainable turns, in order of appearance."""
    turns = (turn for trajectory in group.trajectories for turn in trajectory.turns)
    return list(dict.fromkeys(turn.step for turn in turns if turn.trainable))


@dataclass(frozen=True)
class Totals:
    """The size of an optimizer step over all processes: reply tokens, turns, trajectories and prompts."""

    tokens: int
    turns: int
    trajectories: int
    prompts: int


def count(turns: Sequence[TrainingTurn]) -> Totals:
    """The totals of these turns alone."""
    return Totals(
        tokens=sum(len(turn.reply_ids) for turn in turns),
        turns=len(turns),
        trajectories=len({turn.trajectory for turn in turns}),
        prompts=len({turn.prompt for turn in turns}),
    )


def summed_totals(turns: Sequence[TrainingTurn], accelerator: Accelerator) -> Totals:
    """The totals of the turns of all processes, of which `turns` are this one's. Every process must call it."""
    local = count(turns)
    # A trajectory and a prompt are whole in one process, so that distinct ones can be summed.
    counts = torch.tensor([local.tokens, local.turns, local.trajectories, local.prompts], device=accelerator.device)
    return Totals(*accelerator.reduce(counts, reduction="sum").tolist())


def token_weights(turns: Sequence[TrainingTurn], options: LossOptions, totals: Totals | None = None) -> list[float]:
    """For each turn the weight w of every one of its T reply tokens, fixed over the whole optimizer step.

    The loss of the step is the sum over tokens of w x loss, however the turns are later batched and wherever they
    run, as long as gradients are summed (not averaged) over processes. `totals` are those of all processes; None:
    of these turns. The turns of one trajectory and of one prompt are all in one process.

    token: 1 / tokens (DAPO, arXiv 2503.14476). turn: 1 / (turns T) (GRPO, arXiv 2402.03300). trajectory:
    1 / (trajectories x tokens of the turn's trajectory). prompt: 1 / (prompts x tokens of the turn's prompt).
    constant: 1 / (turns x constant_length) (Dr. GRPO, arXiv 2503.20783).
    """
    totals = count(turns) if totals is None else totals
    if options.weighting == "token":
        return [1 / totals.tokens for _ in turns]
    if options.weighting == "turn":
        return [1 / (totals.turns * len(turn.reply_ids)) for turn in turns]
    if options.weighting == "constant" and options.constant_length is not None:
        return [1 / (totals.turns * options.constant_length) for _ in turns]
    by_trajectory, by_prompt = Counter[int](), Counter[int]()
    for turn in turns:
        by_trajectory[turn.trajectory] += len(turn.reply_ids)
        by_prompt[turn.prompt] += len(turn.reply_ids)
    if options.weighting == "trajectory":
        return [1 / (totals.trajectories * by_trajectory[turn.trajectory]) for turn in turns]
    return [1 / (totals.prompts * by_prompt[turn.prompt]) for turn in turns]

"""GRPO over trajectories of several conversations (arXiv 2402.03300): one optimizer step, read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object

from memfactory.build import Stack
from memfactory.config import Resolved
from memfactory.config.training import GrpoOptions
from memfactory.data.digest import data_hash
from memfactory.dialogue import stream_seed
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.registry import TRAINERS
from memfactory.rollout import rollout
from memfactory.trainers.base import Interrupted, Run, Trainer
from memfactory.trainers.batch import TrainingTurn, has_variance, step_advantages, step_rewards, training_turns
from memfactory.trainers.checkpoint import TrainState
from memfactory.trainers.footprint import architecture
from memfactory.trainers.kl_reward import KlPenalty
from memfactory.trainers.measures import summarized
from memfactory.trainers.order import upcoming
from memfactory.trainers.overlong import OverlongTasks, fitting_tasks
from memfactory.trainers.policy import Policy
from memfactory.trainers.speed import device_metrics, device_peak, training_flops
from memfactory.transcripts import write_transcripts
from memfactory.types import Decoding, Episode, Group, Task, Turn


@TRAINERS.register("grpo", options="memfactory.config.training:GrpoOptions")
class GrpoTrainer(Trainer):
    """Group-relative policy optimization from outcome rewards."""

    options: GrpoOptions

    def __init__(self, resolved: Resolved, options: GrpoOptions, stack: Stack, policy: Policy, run: Run) -> None:
        super().__init__(resolved, options, stack, policy, run)
        self.policy = policy
        data = resolved.config.data.train
        if data is None:
            raise ConfigError("data.train: GRPO needs training tasks, but none are given")
        self.sizes = architecture(policy.model.config)
        self.tasks = fitting_tasks(stack.tasks(data, resolved.base_dir), stack, options.overlong)
        self.state = TrainState(data=data_hash(self.tasks))
        self.overlong = OverlongTasks()
        self.decodings = stack.drawn_with(Decoding(options.temperature, options.top_p, options.top_k))

    def finished(self) -> bool:
        enough = self.options.valid_groups
        return self.state.step >= self.options.steps or (enough is not None and self.state.valid_groups >= enough)

    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        options, policy = self.options, self.policy
        begun = time.monotonic()
        sampled, cursor = self.collect(step)
        rolled_out = time.monotonic()

        self.run.status("training")
        self.rest_engines()
        penalty = KlPenalty(policy, sampled) if options.loss.kl_in_reward else None
        credited = sampled if penalty is None else penalty.credited
        batch_rewards = gathered_rewards(credited)
        turns = training_turns(credited, options, batch_rewards)
        self.keep_transcripts(step, credited, batch_rewards)
        if options.loss.kl_in_loss:
            turns = policy.score_reference(turns)
        if options.minibatches * options.epochs > 1:
            turns = policy.score_old(turns) if penalty is None else penalty.with_old_logprobs(turns)
        updates = [
            policy.update(minibatch)
            for epoch in range(options.epochs)
            for minibatch in self.minibatches(turns, step, epoch)
        ]
        trained = time.monotonic()
        metrics = {
            **gathered_metrics(sampled),
            **summarized(updates),
            "seconds/rollout": rolled_out - begun,
            "seconds/train": trained - rolled_out,
            **self.speed(turns, trained - rolled_out),
            **({} if penalty is None else penalty.measured()),
        }
        metrics["tokens_per_second"] = metrics["tokens/sampled"] / max(rolled_out - begun, 1e-9)
        metrics |= self.adapted(step, metrics)
        valid = int(metrics["groups/valid"])
        state = replace(self.state, step=step, cursor=cursor, valid_groups=self.state.valid_groups + valid)
        return state, metrics

    def adapted(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Let the KL coefficient and the reference follow this step; the coefficient of the step, if it adapts."""
        used = self.policy.kl.value
        trajectories = int(metrics["groups"]) * self.options.generations
        self.policy.after_step(step, metrics.get("kl"), trajectories)
        return {"kl_weight": used} if self.policy.kl.adapts else {}

    def speed(self, turns: Sequence[TrainingTurn], seconds: float) -> dict[str, float]:
        """What the training pass of this process achieved: TFLOP/s, its share of the device's peak, memory."""
        achieved = training_flops(self.sizes, turns, self.options) / max(seconds, 1e-9)
        peak = device_peak(self.policy.device)
        utilization = {} if peak is None else {"mfu": achieved / peak}
        return {"tflops": achieved / 1e12, **utilization, **device_metrics(self.policy.device)}

    def collect(self, step: int) -> tuple[list[Group], int]:
        """This process's groups for one optimizer step, and the cursor after them.

        With `require_variance` further tasks are rolled out until enough groups have rewards that differ.
        """
        options = self.options
        wanted = options.prompts_per_step
        if options.valid_groups is not None:
            wanted = min(wanted, options.valid_groups - self.state.valid_groups)
        groups: list[Group] = []
        cursor, counted, rollouts = self.state.cursor, 0, 0
        while counted < wanted:
            if rollouts == options.max_rollouts_per_step and options.require_variance:
                if counted:
                    break
                raise MemFactoryError(
                    f"step {step}: {rollouts} rollouts ({cursor - self.state.cursor} tasks x {options.generations} "
                    "attempts) gave no group whose rewards differ, so there is nothing to learn from. The tasks are "
                    "too easy or too hard for this model, or the reward never varies; see transcripts/."
                )
            size = min(options.rollout_prompts or wanted, wanted - counted)
            new = self.roll_out(cursor, size)
            cursor, rollouts = cursor + size, rollouts + 1
            groups += new
            self.tell_overlong(new)
            self.stop_on_unknown(groups, step, wanted)
            counted += sum(gather_object([has_variance(g) or not options.require_variance for g in new]))
        return groups, cursor

    def roll_out(self, cursor: int, count: int) -> list[Group]:
        """This process's share of the groups of the next `count` tasks. All processes stop together if they must."""
        share = slice(self.policy.process_index, None, self.policy.process_count)
        conversations = 0

        def on_turn(episode: Episode, turn: Turn) -> None:
            nonlocal conversations
            conversations += 1
            self.run.status(f"rolling out: {conversations} conversations")
            self.run.check()

        groups: list[Group] = []
        with suppress(Interrupted):
            groups = rollout(
                self.stack.agent,
                self.stack.env,
                list(self.upcoming(cursor, count))[share],
                self.stack.engines,
                group_size=self.options.generations,
                decodings=self.decodings,
                # A task can come again, even within a step, and is then attempted anew.
                seeds=[stream_seed(self.config.seed, "rollout", at) for at in range(cursor, cursor + count)[share]],
                on_turn=on_turn,
            )
        self.check()
        return groups

    def upcoming(self, cursor: int, count: int) -> Iterator[Task]:
        """The next `count` training tasks: one seeded order an epoch."""
        return upcoming(self.tasks, cursor, count, seed=self.config.seed, shuffle=self.config.data.shuffle)

    def minibatches(self, turns: Sequence[TrainingTurn], step: int, epoch: int) -> Iterator[list[TrainingTurn]]:
        """The turns in `minibatches` parts of whole prompts, in a seeded order where there are several."""
        parts = self.options.minibatches
        prompts = sorted({turn.prompt for turn in turns})
        if parts > 1:
            Random(stream_seed(self.config.seed, "minibatches", step, epoch)).shuffle(prompts)
        for part in range(parts):
            chosen = set(prompts[part::parts])
            yield [turn for turn in turns if turn.prompt in chosen]

    def keep_transcripts(self, step: int, groups: Sequence[Group], batch_rewards: Mapping[str, list[float]]) -> None:
        """Write the conversations of the first groups, with their rewards and advantages."""
        kept = groups[: self.options.transcripts_per_step]
        if self.run.main and kept:
            advantages = [step_advantages(group, self.options, batch_rewards) for group in kept]
            write_transcripts(self.run.folder, step, kept, advantages)

    def tell_overlong(self, groups: Sequence[Group]) -> None:
        """Name the tasks whose attempts did not fit the context, each once, whichever process met them."""
        own = {g.task.id: t.failure for g in groups for t in g.trajectories if t.overlong and t.failure is not None}
        found = {task: reason for each in gather_object([own]) for task, reason in each.items()}
        if self.run.main:
            self.overlong.tell(found)

    def stop_on_unknown(self, groups: Sequence[Group], step: int, wanted: int) -> None:
        """Raise MemFactoryError when too many rewards are unknown: the judge is down, not the policy bad.

        `groups` are those of the step so far, which will be `wanted` at least. Attempts that do not fit the context
        would not fit the next time either, so they stop no run.
        """
        unknown = gather_object([t.reward.total is None and not t.overlong for g in groups for t in g.trajectories])
        rewards = max(len(unknown), wanted * self.options.generations)
        if sum(unknown) > self.options.max_unknown_share * rewards:
            raise MemFactoryError(
                f"step {step}: {sum(unknown)} of {rewards} rewards are unknown (a judge or a helper failed, or rows "
                "lack gold answers or evidence), more than train.max_unknown_share = "
                f"{self.options.max_unknown_share:g} allows. Nothing was trained on them; mend it and go on with "
                "--resume."
            )


def gathered_rewards(groups: Sequence[Group]) -> dict[str, list[float]]:
    """The known rewards of every trained step, of all processes."""
    merged: dict[str, list[float]] = {}
    for rewards in gather_object([step_rewards(groups)]):
        for step, values in rewards.items():
            merged.setdefault(step, []).extend(values)
    return merged


def gathered_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the rollout was like over all processes. Every group counts, also those that train nothing."""
    rows = gather_object([_describe(group) for group in groups])
    if not rows:
        return {}
    trajectories = [t for row in rows for t in row["trajectories"]]
    known = [t["reward"] for t in trajectories if t["reward"] is not None]
    turns = [turn for t in trajectories for turn in t["turns"]]
    metrics: dict[str, float] = {}
    if known:
        metrics["reward"] = fmean(known)
    for part in sorted({part for t in trajectories for part in t["parts"]}):
        values = [t["parts"][part] for t in trajectories if t["parts"].get(part) is not None]
        if values:
            metrics[f"reward/{part}"] = fmean(values)
    valid = sum(row["variance"] for row in rows)
    metrics |= {
        "groups": len(rows),
        "groups/valid": valid,
        "groups/zero_variance": 1 - valid / len(rows),
        "groups/unknown": 1 - len(known) / len(trajectories),
        "turns": len(turns) / len(trajectories),
        "tokens/sampled": sum(length for _, length, _ in turns),
        "tokens/prompts": sum(length for length, _, _ in turns),
    }
    if turns:
        metrics["reply_tokens"] = fmean(length for _, length, _ in turns)
        metrics["truncated"] = fmean(cut for _, _, cut in turns)
    return metrics


def _describe(group: Group) -> dict[str, Any]:
    return {
        "variance": has_variance(group),
        "trajectories": [
            {
                "reward": trajectory.reward.total,
                "parts": dict(trajectory.reward.parts),
                "turns": [
                    (len(tokens.prompt_ids), len(tokens.reply_ids), turn.reply.stop == "length")
                    for turn in trajectory.turns
                    if (tokens := turn.reply.tokens) is not None
                ],
            }
            for trajectory in group.trajectories
        ],
    }

"""GRPO over trajectories of several conversations (arXiv 2402.03300): one optimizer step, read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

from accelerate.utils import gather_object

from memfactory.build import Runtime
from memfactory.config.grpo import GrpoOptions
from memfactory.data.digest import data_hash
from memfactory.episode import Episode
from memfactory.errors import MemFactoryError
from memfactory.plan.flops import device_metrics, device_peak, training_flops
from memfactory.plan.footprint import architecture
from memfactory.plan.work import Forecast, Work
from memfactory.policy.batch import TrainingTurn, has_variance, step_advantages, teaches, training_turns
from memfactory.policy.kl_reward import KlPenalty
from memfactory.policy.measures import summarized
from memfactory.policy.policy import Policy
from memfactory.registry import TRAINERS
from memfactory.rollout import rollout
from memfactory.seeds import stream_seed
from memfactory.trainers.base import Interrupted, Run, Trainer
from memfactory.trainers.carried import (
    group_from_json,
    group_json,
    load_carried,
    save_carried,
    with_sampled_logprobs,
)
from memfactory.trainers.checkpoint import TrainState
from memfactory.trainers.diagnosis import diagnose
from memfactory.trainers.order import TrainingTasks
from memfactory.trainers.overlong import OverlongTasks, fitting_tasks
from memfactory.trainers.rollout_metrics import gathered_facts, gathered_metrics, gathered_rewards, gathered_texts
from memfactory.trainers.unknown import count_unknown, excess, summed
from memfactory.trainers.watch import Watch, settings_of
from memfactory.transcripts import write_transcripts
from memfactory.types import Group, Turn


@TRAINERS.register("grpo", options="memfactory.config.grpo:GrpoOptions")
class GrpoTrainer(Trainer[GrpoOptions]):
    """Group-relative policy optimization from outcome rewards."""

    def __init__(self, options: GrpoOptions, runtime: Runtime, policy: Policy, tasks: TrainingTasks, run: Run) -> None:
        super().__init__(options, runtime, policy, fitting_tasks(tasks, runtime, options.overlong), run)
        self.sizes = architecture(policy.model.config)
        self.state = TrainState(data=data_hash(self.tasks.tasks))
        self.overlong = OverlongTasks()
        # Groups that wait for the next step, of all processes; and those that will wait after this step.
        self.carried: tuple[Group, ...] = ()
        self._surplus: tuple[Group, ...] = ()
        self.watch = Watch(settings_of(options, runtime.agent), run)
        self.sampler = runtime.sampler(options.sampling)

    @classmethod
    def plan(cls, options: GrpoOptions, forecast: Forecast) -> Work:
        lengths = forecast.lengths
        if lengths is None:
            return Work(options.steps)
        prompts, group = options.prompts_per_step, options.group_size
        conversations = prompts * group * lengths.turns / options.minibatches
        tokens = conversations * (lengths.prompt + lengths.reply)
        rows = [
            ("prompts x group size", f"{prompts} x {group} = {prompts * group:,} trajectories per rollout"),
            ("optimizer steps per rollout", str(options.updates_per_step)),
            ("conversations per optimizer step", f"{conversations:,.0f}"),
            ("tokens per optimizer step", f"at most {tokens:,.0f}"),
        ]
        if options.valid_groups is not None:
            rows.append(("ends after", f"{options.valid_groups} groups whose rewards differ"))
        return forecast.played(options.steps, *rows)

    def finished(self) -> bool:
        limit = self.options.valid_groups
        return super().finished() or (limit is not None and self.state.valid_groups >= limit)

    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        options, policy = self.options, self.trained
        started = time.monotonic()
        sampled, cursor = self.collect(step)
        rolled_out = time.monotonic()
        texts = gathered_texts(sampled)
        self.warn_of_cut(step, texts)

        self.run.status("training")
        self.sleep_engines()
        penalty = KlPenalty(policy, sampled) if options.loss.kl_in_reward else None
        credited = sampled if penalty is None else penalty.credited
        batch_rewards = gathered_rewards(credited)
        turns = training_turns(credited, options, batch_rewards)
        self.keep_transcripts(step, credited, batch_rewards)
        if options.loss.kl_in_loss:
            turns = policy.score_reference(turns)
        if options.updates_per_step > 1 or self.carried:
            scored = policy.score_old(turns) if penalty is None else penalty.with_old_logprobs(turns)
            turns = with_sampled_logprobs(scored, self.waited)
        updates = [
            policy.update(minibatch)
            for epoch in range(options.epochs)
            for minibatch in self.minibatches(turns, step, epoch)
        ]
        trained = time.monotonic()
        metrics = {
            **gathered_metrics(sampled),
            **({"texts/dropped": texts.dropped_share} if texts.texts else {}),
            **summarized(updates),
            "seconds/rollout": rolled_out - started,
            "seconds/train": trained - rolled_out,
            **self.speed(turns, trained - rolled_out),
            **({} if penalty is None else penalty.measured()),
        }
        metrics["tokens_per_second"] = metrics["tokens/sampled"] / max(rolled_out - started, 1e-9)
        metrics |= self.adapted(step, metrics)
        # A plugin's advantage estimator may distinguish trajectories with equal rewards.
        self.watch.step(step, gathered_facts(credited, lambda group: teaches(group, options, batch_rewards)), updates)
        valid = int(metrics["groups/valid"])
        state = replace(self.state, step=step, cursor=cursor, valid_groups=self.state.valid_groups + valid)
        self.carried = self._surplus
        return state, metrics

    def adapted(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Adapt the KL coefficient and update the reference; returns the coefficient of this step if it adapts."""
        used = self.trained.kl.value
        trajectories = int(metrics["groups"]) * self.options.group_size
        self.trained.after_step(step, metrics.get("kl"), trajectories)
        return {"kl_coef": used} if self.trained.kl.adapts else {}

    def conclude(self) -> None:
        self.watch.end()

    @property
    def waited(self) -> frozenset[int]:
        """The positions of the groups that were sampled before this step."""
        return frozenset(group.place for group in self.carried if group.place is not None)

    def save_more(self, folder: Path) -> None:
        save_carried(folder, self.carried)

    def resume(self, checkpoint: Path) -> None:
        super().resume(checkpoint)
        self.carried = load_carried(checkpoint, self.tasks.at)

    def speed(self, turns: Sequence[TrainingTurn], seconds: float) -> dict[str, float]:
        """Speed of this process's training pass: TFLOP/s, model FLOPs utilization, peak memory."""
        achieved = training_flops(self.sizes, turns, self.options) / max(seconds, 1e-9)
        peak = device_peak(self.trained.device)
        utilization = {} if peak is None else {"mfu": achieved / peak}
        return {"tflops": achieved / 1e12, **utilization, **device_metrics(self.trained.device)}

    def collect(self, step: int) -> tuple[list[Group], int]:
        """This process's groups for one optimizer step, and the cursor after them.

        With `require_variance` tasks are rolled out until enough groups have rewards that differ. With `carry_groups`
        surplus groups wait for the next step; without it a rollout has only as many tasks as groups are missing.
        """
        options = self.options
        needed = options.prompts_per_step
        if options.valid_groups is not None:
            needed = min(needed, options.valid_groups - self.state.valid_groups)
        groups = [group for group in self.carried if self.is_own(group.place)]
        cursor, counted, rollouts = self.state.cursor, len(self.carried), 0
        while counted < needed:
            if rollouts == options.max_rollouts_per_step and options.require_variance:
                if counted:
                    break
                diagnosis = diagnose(gathered_facts(groups), self.watch.settings)
                raise MemFactoryError(
                    f"step {step}: {rollouts} rollouts ({cursor - self.state.cursor} tasks x {options.group_size} "
                    f"episodes) gave no group whose rewards differ, so there is nothing to learn from: {diagnosis}"
                )
            size = options.rollout_prompts or options.prompts_per_step
            if not options.carry_groups:
                size = min(size, needed - counted)
            new_groups = self.roll_out(cursor, size)
            cursor, rollouts = cursor + size, rollouts + 1
            groups += new_groups
            self.report_overlong(new_groups)
            self.stop_on_unknown(groups, step, needed)
            counted += sum(gather_object([has_variance(g) or not options.require_variance for g in new_groups]))
        return self.without_surplus(groups, needed), cursor

    def without_surplus(self, groups: list[Group], needed: int) -> list[Group]:
        """The groups of this step. Those with variance beyond the first `needed` are put aside for the next."""
        if not self.options.carry_groups:
            return groups
        valid = sorted(gather_object([group.place for group in groups if has_variance(group)]))
        beyond = set(valid[needed:])
        values = gather_object([group_json(group) for group in groups if group.place in beyond])
        values.sort(key=lambda value: value["place"])
        self._surplus = tuple(group_from_json(value, self.tasks.at) for value in values)
        return [group for group in groups if group.place not in beyond]

    def roll_out(self, cursor: int, count: int) -> list[Group]:
        """This process's groups of the next `count` tasks. If one process is interrupted, all of them stop."""
        places = [place for place in range(cursor, cursor + count) if self.is_own(place)]
        conversations = 0

        def on_turn(episode: Episode, turn: Turn) -> None:
            nonlocal conversations
            conversations += 1
            self.run.status(f"rolling out: {conversations} conversations")
            self.run.check()

        groups: list[Group] = []
        with suppress(Interrupted):
            groups = rollout(
                self.sampler,
                self.runtime.env,
                [self.tasks.at(place) for place in places],
                group_size=self.options.group_size,
                # A task can come again, even within a step; its position makes its next episodes other ones.
                seeds=[stream_seed(self.runtime.seed, "rollout", place) for place in places],
                on_turn=on_turn,
            )
        self.check()
        return [replace(group, place=place) for group, place in zip(groups, places, strict=True)]

    def is_own(self, place: int | None) -> bool:
        """Whether the task at `place` is this process's. Processes take tasks in turn, also if a rollout has few."""
        return place is not None and place % self.trained.process_count == self.trained.process_index

    def minibatches(self, turns: Sequence[TrainingTurn], step: int, epoch: int) -> Iterator[list[TrainingTurn]]:
        """This process's turns in `minibatches` parts of whole prompts, in a seeded order for more than one part.

        The parts are those of the prompts of all processes, so that there are as many with several processes as with
        one. All must call it.
        """
        parts = self.options.minibatches
        prompts = sorted({turn.prompt for turn in turns})
        if parts > 1:
            prompts = sorted(gather_object(prompts))
            Random(stream_seed(self.runtime.seed, "minibatches", step, epoch)).shuffle(prompts)
        for part in range(parts):
            chosen = set(prompts[part::parts])
            yield [turn for turn in turns if turn.prompt in chosen]

    def keep_transcripts(self, step: int, groups: Sequence[Group], batch_rewards: Mapping[str, list[float]]) -> None:
        """Write the conversations of the first groups, with their rewards and advantages."""
        recorded = groups[: self.options.transcripts_per_step]
        if self.run.main and recorded:
            advantages = [step_advantages(group, self.options, batch_rewards) for group in recorded]
            tokens = self.options.transcript_tokens
            write_transcripts(self.run.folder, step, recorded, advantages, frame=self.runtime.frame, tokens=tokens)

    def report_overlong(self, groups: Sequence[Group]) -> None:
        """Report the tasks that do not fit the context, each once, from every process."""
        own_reasons = {
            group.task.id: trajectory.failure
            for group in groups
            for trajectory in group.trajectories
            if trajectory.overlong and trajectory.failure is not None
        }
        reasons = {task: reason for process in gather_object([own_reasons]) for task, reason in process.items()}
        if self.run.main:
            self.overlong.report(reasons)

    def stop_on_unknown(self, groups: Sequence[Group], step: int, needed: int) -> None:
        """Raise MemFactoryError if too many rewards are unknown: the judge is down, the policy is not to blame.

        `groups` are those of the step so far, of `needed` at least. Episodes that do not fit the context would not fit
        the next time either, so they do not stop the run.
        """
        unknown = summed(gather_object([count_unknown(groups)]))
        fraction = self.options.max_unknown_fraction
        message = excess(unknown, fraction, max(unknown.episodes, needed * self.options.group_size))
        if message is not None:
            raise MemFactoryError(
                f"step {step}: {message} (a judge or another engine failed, or rows lack gold answers or evidence), "
                f"more than train.max_unknown_fraction = {fraction:g} allows. Nothing was trained on them; fix it and "
                "continue with --resume."
            )

"""Online learning: modules with parameters of their own learn from attempts as they are made, as RMM's retrospective
reflection does (arXiv 2503.08026). The language model speaks and stays as it is, so it may be an API.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy

from memfactory.build import Runtime
from memfactory.config import Resolved
from memfactory.config.training import OnlineOptions
from memfactory.data.digest import data_hash
from memfactory.episode import Episode
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.play import PlaySettings, play
from memfactory.registry import TRAINERS
from memfactory.rollout import scored, texts_read, trajectory_of
from memfactory.seeds import stream_seed
from memfactory.trainers.base import Run, Trainer
from memfactory.trainers.checkpoint import TrainState
from memfactory.trainers.learners import Learners
from memfactory.trainers.order import upcoming
from memfactory.trainers.overlong import OverlongTasks, fitting_tasks
from memfactory.transcripts import write_transcripts
from memfactory.types import Group, Reward, SamplingParams, Turn

log = logging.getLogger("memfactory")


@TRAINERS.register("online", options="memfactory.config.training:OnlineOptions")
class OnlineTrainer(Trainer):
    """Modules such as the linear reranker learn from attempts as they are made."""

    options: OnlineOptions

    def __init__(
        self, resolved: Resolved, options: OnlineOptions, stack: Runtime, learners: Learners, run: Run
    ) -> None:
        super().__init__(resolved, options, stack, learners, run)
        data = resolved.config.data.train
        if data is None:
            raise ConfigError("data.train: online learning needs tasks, but none are given")
        self.learners = learners
        self.tasks = fitting_tasks(stack.tasks(data, resolved.base_dir), stack, options.overlong)
        self.state = TrainState(data=data_hash(self.tasks))
        self.overlong = OverlongTasks()
        # The modules that have learnt nothing since this process began.
        self.unchanged, self.learnt_from = set(learners.modules), 0
        self.sampler = stack.sampler(SamplingParams(options.temperature, options.top_p, options.top_k))

    def conclude(self) -> None:
        """Say so where modules have learnt nothing."""
        if self.unchanged and self.learnt_from:
            log.warning(
                "at step %d: %s learnt nothing in this run. The attempts gave nothing to learn from: see what "
                "metrics.jsonl says as %s/..., and in transcripts/ whether answers have the form that the module reads",
                self.state.step,
                ", ".join(sorted(self.unchanged)),
                min(self.unchanged),
            )

    def learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The modules learn from the attempts."""
        self.learnt_from += len(episodes)
        before = self.learners.states() if self.unchanged else {}
        measured = self.learners.learn(episodes)
        after = self.learners.states() if self.unchanged else {}
        self.unchanged = {slot for slot in self.unchanged if equal(before[slot], after[slot])}
        return measured

    def finished(self) -> bool:
        return self.state.step >= self.options.steps

    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        cursor = self.state.cursor
        episodes = self.attempted(cursor)
        self.stop_on_failures(episodes, step)
        rewards = scored(self.stack.env, episodes)
        self.keep_transcripts(step, episodes, rewards)
        texts = texts_read({episode.task.id: episode.reading for episode in episodes})
        self.warn_of_cut(step, texts)
        metrics = {**measured(episodes, rewards), **self.learn(episodes)}
        metrics |= {"texts/dropped": texts.dropped_share} if texts.texts else {}
        return replace(self.state, step=step, cursor=cursor + len(episodes)), metrics

    def attempted(self, cursor: int) -> list[Episode]:
        """One attempt at each of the next tasks, played to its end while the modules explore."""
        config, count = self.config, self.options.batch_size
        conversations = 0

        def on_turn(episode: Episode, turn: Turn) -> None:
            nonlocal conversations
            conversations += 1
            self.run.status(f"attempting: {conversations} conversations")
            self.run.check()

        tasks = upcoming(self.tasks, cursor, count, seed=config.seed, shuffle=config.data.shuffle)
        # A task can come again and is then attempted anew.
        episodes = [Episode(task, seed=stream_seed(config.seed, "online", at)) for at, task in enumerate(tasks, cursor)]
        with self.learners.learning():
            settings = PlaySettings(frozen=True, seed=stream_seed(config.seed, "online", cursor))
            for _ in play(self.sampler, episodes, settings, score=self.stack.env.score, on_turn=on_turn):
                pass
        return episodes

    def keep_transcripts(self, step: int, episodes: Sequence[Episode], rewards: Sequence[Reward]) -> None:
        """Write the conversations of the first attempts."""
        kept = list(zip(episodes, rewards, strict=True))[: self.options.transcripts_per_step]
        groups = [Group(one.task, (trajectory_of(one, reward),)) for one, reward in kept]
        if groups:
            write_transcripts(self.run.folder, step, groups, [{} for _ in groups], frame=self.stack.frame)

    def stop_on_failures(self, episodes: Sequence[Episode], step: int) -> None:
        """Raise MemFactoryError when too many attempts ended early: a helper is down."""
        self.overlong.tell({e.task.id: e.failure for e in episodes if e.failure is not None and e.overlong})
        failures = [episode.failure for episode in episodes if episode.failure is not None and not episode.overlong]
        allowed = self.options.max_failed_fraction
        if len(failures) > allowed * len(episodes):
            raise MemFactoryError(
                f"step {step}: {len(failures)} of {len(episodes)} attempts failed, more than "
                f"train.max_failed_fraction = {allowed:g} allows; the first: {failures[0]}. Nothing was learnt from "
                "them; mend it and go on with --resume."
            )


def equal(first: Mapping[str, numpy.ndarray], second: Mapping[str, numpy.ndarray]) -> bool:
    """Whether two states of a module are the same."""
    return first.keys() == second.keys() and all(numpy.array_equal(first[name], second[name]) for name in first)


def measured(episodes: Sequence[Episode], rewards: Sequence[Reward]) -> dict[str, float]:
    """What the attempts of one step were like: mean rewards of those that are known, turns, reply lengths."""
    known = [reward.total for reward in rewards if reward.total is not None]
    metrics = {"reward": fmean(known)} if known else {}
    for part in sorted({part for reward in rewards for part in reward.parts}):
        values = [value for reward in rewards if (value := reward.parts.get(part)) is not None]
        if values:
            metrics[f"reward/{part}"] = fmean(values)
    replies = [turn.reply for episode in episodes for turn in episode.turns]
    lengths = [len(reply.tokens.reply_ids) for reply in replies if reply.tokens is not None]
    metrics |= {"failed": fmean(episode.failure is not None for episode in episodes)}
    metrics |= {"reply_tokens": fmean(lengths)} if lengths else {}
    metrics |= {"truncated": fmean(reply.stop == "length" for reply in replies)} if replies else {}
    return {**metrics, "turns": len(replies) / len(episodes)}

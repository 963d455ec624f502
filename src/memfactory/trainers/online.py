"""Online learning: modules with parameters of their own learn from finished episodes, as in RMM's retrospective
reflection (arXiv 2503.08026). The language model is not trained, so it may be behind an API.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy

from memfactory.build import Runtime
from memfactory.config.online import OnlineOptions
from memfactory.data.digest import data_hash
from memfactory.episode import Episode
from memfactory.errors import MemFactoryError
from memfactory.plan.work import Forecast, Work
from memfactory.play import PlaySettings, play
from memfactory.registry import TRAINERS
from memfactory.rollout import scored, texts_read, trajectory_of
from memfactory.seeds import stream_seed
from memfactory.text import is_unfinished_thinking
from memfactory.trainers.base import Run, Trainer
from memfactory.trainers.checkpoint import TrainState
from memfactory.trainers.learners import Learners
from memfactory.trainers.order import TrainingTasks
from memfactory.trainers.overlong import OverlongTasks, fitting_tasks
from memfactory.trainers.rollout_metrics import mean_rewards, unfinished_thinking
from memfactory.transcripts import write_transcripts
from memfactory.types import Group, Reward, Turn

log = logging.getLogger("memfactory")


@TRAINERS.register("online", options="memfactory.config.online:OnlineOptions")
class OnlineTrainer(Trainer[OnlineOptions, Learners]):
    """Modules with parameters of their own, such as the linear reranker, learn from each batch of episodes."""

    def __init__(
        self, options: OnlineOptions, runtime: Runtime, learners: Learners, tasks: TrainingTasks, run: Run
    ) -> None:
        super().__init__(options, runtime, learners, fitting_tasks(tasks, runtime, options.overlong), run)
        self.state = TrainState(data=data_hash(self.tasks.tasks))
        self.overlong = OverlongTasks()
        # The modules that have not changed since this process began.
        self.unchanged, self.episodes_seen = set(learners.modules), 0
        self.sampler = runtime.sampler(options.sampling)

    @classmethod
    def plan(cls, options: OnlineOptions, forecast: Forecast) -> Work:
        episodes = f"{options.batch_size} a step, {options.steps * options.batch_size:,} in all"
        return Work(options.steps, (("episodes", episodes),))

    def conclude(self) -> None:
        """Warn of modules that learned nothing."""
        if self.unchanged and self.episodes_seen:
            log.warning(
                "at step %d: %s learned nothing in this run. No episode gave a module anything to learn from: see "
                "%s/... in metrics.jsonl, and check in transcripts/ that answers have the form that the module reads",
                self.state.step,
                ", ".join(sorted(self.unchanged)),
                min(self.unchanged),
            )

    def learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Let the modules learn from the episodes."""
        self.episodes_seen += len(episodes)
        before = self.trained.states() if self.unchanged else {}
        measured = self.trained.learn(episodes)
        after = self.trained.states() if self.unchanged else {}
        self.unchanged = {slot for slot in self.unchanged if equal(before[slot], after[slot])}
        return measured

    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        cursor = self.state.cursor
        episodes = self.played(cursor)
        self.stop_on_failures(episodes, step)
        rewards = scored(self.runtime.env, episodes)
        self.keep_transcripts(step, episodes, rewards)
        texts = texts_read({episode.task.id: episode.reading for episode in episodes})
        self.warn_of_cut(step, texts)
        metrics = {**measured(episodes, rewards), **self.learn(episodes)}
        metrics |= {"texts/dropped": texts.dropped_share} if texts.texts else {}
        return replace(self.state, step=step, cursor=cursor + len(episodes)), metrics

    def played(self, cursor: int) -> list[Episode]:
        """One finished episode of each of the next tasks, played while the modules explore."""
        options, seed = self.options, self.runtime.seed
        conversations = 0

        def on_turn(episode: Episode, turn: Turn) -> None:
            nonlocal conversations
            conversations += 1
            self.run.status(f"playing episodes: {conversations} conversations")
            self.run.check()

        tasks = self.tasks.upcoming(cursor, options.batch_size)
        # A task can come again; the position makes its next episode another one.
        episodes = [Episode(task, seed=stream_seed(seed, "online", at)) for at, task in enumerate(tasks, cursor)]
        with self.trained.learning():
            settings = PlaySettings(frozen=True, seed=stream_seed(seed, "online", cursor))
            for _ in play(self.sampler, episodes, settings, score=self.runtime.env.score, on_turn=on_turn):
                pass
        return episodes

    def keep_transcripts(self, step: int, episodes: Sequence[Episode], rewards: Sequence[Reward]) -> None:
        """Write the conversations of the first episodes."""
        first = list(zip(episodes, rewards, strict=True))[: self.options.transcripts_per_step]
        groups = [Group(episode.task, (trajectory_of(episode, reward),)) for episode, reward in first]
        if groups:
            write_transcripts(self.run.folder, step, groups, [{} for _ in groups], frame=self.runtime.frame)

    def stop_on_failures(self, episodes: Sequence[Episode], step: int) -> None:
        """Raise MemFactoryError if too many episodes failed: an engine is down."""
        self.overlong.report({e.task.id: e.failure for e in episodes if e.failure is not None and e.overlong})
        failures = [episode.failure for episode in episodes if episode.failure is not None and not episode.overlong]
        allowed = self.options.max_failed_fraction
        if len(failures) > allowed * len(episodes):
            raise MemFactoryError(
                f"step {step}: {len(failures)} of {len(episodes)} episodes failed, more than "
                f"train.max_failed_fraction = {allowed:g} allows; the first: {failures[0]}. Nothing was learned from "
                "them; fix it and continue with --resume."
            )


def equal(first: Mapping[str, numpy.ndarray], second: Mapping[str, numpy.ndarray]) -> bool:
    """Whether two states of a module are equal."""
    return first.keys() == second.keys() and all(numpy.array_equal(first[name], second[name]) for name in first)


def measured(episodes: Sequence[Episode], rewards: Sequence[Reward]) -> dict[str, float]:
    """Metrics of the episodes of one step: mean known rewards, turns, reply lengths."""
    known = [reward.total for reward in rewards if reward.total is not None]
    metrics = mean_rewards(known, [reward.parts for reward in rewards])
    replies = [turn.reply for episode in episodes for turn in episode.turns]
    lengths = [len(reply.tokens.reply_ids) for reply in replies if reply.tokens is not None]
    metrics |= {"failed": fmean(episode.failure is not None for episode in episodes)}
    metrics |= {"reply_tokens": fmean(lengths)} if lengths else {}
    metrics |= {"truncated": fmean(reply.stop == "length" for reply in replies)} if replies else {}
    metrics |= unfinished_thinking([is_unfinished_thinking(reply.text) for reply in replies])
    return {**metrics, "turns": len(replies) / len(episodes)}

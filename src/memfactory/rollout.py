"""Tasks x group size to groups of trajectories: play every episode, then score them. No torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from memfactory.components import ModuleOptions
from memfactory.episode import Episode, bank_trace
from memfactory.play import OnTurn, Sampler, play
from memfactory.plugins.boundary import broken, guarded, short_repr
from memfactory.registry import Options
from memfactory.types import Group, Reading, Reward, Task, Trajectory

log = logging.getLogger("memfactory")


class Scorer(Protocol):
    """The part of an environment that a rollout needs."""

    def score(self, episodes: Sequence[Episode]) -> list[Reward]:
        """The reward of each episode."""


def rollout(
    sampler: Sampler,
    env: Scorer,
    tasks: Sequence[Task],
    *,
    group_size: int,
    seeds: Sequence[int],
    on_turn: OnTurn | None = None,
) -> list[Group]:
    """Play `group_size` episodes of each task and score them; the groups come in the order of the tasks.

    `seeds`, one per task, name the random streams. The seed, the episode's index and the turn's number fix every
    sampled token, so equal weights and equal seeds give equal groups in any run. A warning counts the episodes
    that ended by the failure of another engine or by a refused request; the caller reports those that did not fit the
    context.
    """
    episodes = [
        Episode(task, index=index, seed=seed)
        for task, seed in zip(tasks, seeds, strict=True)
        for index in range(group_size)
    ]
    for _ in play(sampler, episodes, score=env.score, on_turn=on_turn):
        pass
    warn_of_failures([(e.task.id, e.failure) for e in episodes if e.failure and not e.overlong], len(episodes))
    rewards = scored(env, episodes)
    trajectories = [trajectory_of(episode, reward) for episode, reward in zip(episodes, rewards, strict=True)]
    return [
        Group(task, tuple(trajectories[index * group_size : (index + 1) * group_size]))
        for index, task in enumerate(tasks)
    ]


def warn_of_failures(failures: Sequence[tuple[str, str]], episodes: int, unknown: str = "rewards") -> None:
    """Warn of episodes that ended early, out of `episodes`; `failures`: task ids and reasons."""
    if failures:
        task, reason = failures[0]
        log.warning(
            "%d of %d episodes ended early, because an engine failed or refused a request, so their %s are unknown; "
            "the first: %s (task %r)",
            len(failures),
            episodes,
            unknown,
            reason,
            task,
        )


@dataclass(frozen=True)
class TextsRead:
    """The tokens `read` and `dropped` of all `texts`, and the number of texts that lost some (`cut`)."""

    texts: int = 0
    cut: int = 0
    read: int = 0
    dropped: int = 0

    @property
    def dropped_share(self) -> float:
        """The fraction of tokens that were left out."""
        return self.dropped / (self.read + self.dropped) if self.dropped else 0.0

    def warning(self, options: Mapping[str, Options]) -> str | None:
        """A sentence on the tokens left out, with the option that limits them, of an agent's modules by slot; None if
        all was read."""
        if not self.cut:
            return None
        return (
            f"{self.cut} of {self.texts} texts are longer than the limit: {self.dropped:,} of "
            f"{self.read + self.dropped:,} tokens are left out; {deciding(options)}"
        )


def texts_read(readings: Mapping[str, Reading | None]) -> TextsRead:
    """The sum of the readings by task id, of modules that report them."""
    known = [reading for reading in readings.values() if reading is not None]
    return TextsRead(
        texts=len(known),
        cut=sum(reading.dropped > 0 for reading in known),
        read=sum(reading.read for reading in known),
        dropped=sum(reading.dropped for reading in known),
    )


def deciding(options: Mapping[str, Options]) -> str:
    """The option of an agent's modules, by slot, that limits the reading of a text."""
    limits = []
    for slot, module in options.items():
        for name, whole in list(module.limits.items())[:1] if isinstance(module, ModuleOptions) else []:
            limit, unlimited = getattr(module, name), "null" if whole is None else whole
            if limit != whole:
                key = f"agent.modules.{slot}.{name}"
                limits.append(f"{key} is {limit}, and {key}={unlimited} reads all")
    return " and ".join(limits) or "a module of the agent sets the limit"


def trajectory_of(episode: Episode, reward: Reward) -> Trajectory:
    """A finished episode with its reward; rewards computed at a module's end credit that module's steps."""
    by_step = {step: reward.total for step, reward in episode.step_rewards.items()}
    if by_step:
        reward = replace(reward, steps=MappingProxyType({**by_step, **reward.steps}))
    return Trajectory(
        episode.index,
        tuple(episode.turns),
        episode.answer,
        reward,
        episode.failure,
        episode.overlong,
        episode.reading,
        bank_trace(episode),
    )


def scored(env: Any, episodes: Sequence[Episode]) -> list[Reward]:
    """The rewards that an environment gives to `episodes`. Raises PluginError for another number of rewards, or for
    values that are not rewards."""
    component = type(env)
    with guarded(component, doing="in scoring"):
        # A copy, which `score` may change.
        rewards = env.score(list(episodes))
    if not isinstance(rewards, Sequence) or len(rewards) != len(episodes):
        number = len(rewards) if isinstance(rewards, Sequence) else short_repr(rewards)
        raise broken(component, "score", f"returned {number} rewards for {len(episodes)} episodes")
    for episode, reward in zip(episodes, rewards, strict=True):
        if not isinstance(reward, Reward):
            raise broken(component, "score", f"gave the task {episode.task.id!r} {short_repr(reward)}, not a Reward")
        for name, value in {"total": reward.total, **reward.parts, **reward.steps}.items():
            if value is not None and not (isinstance(value, float | int) and math.isfinite(value)):
                raise broken(component, "score", f"gave the task {episode.task.id!r} {name} = {short_repr(value)}")
    return list(rewards)

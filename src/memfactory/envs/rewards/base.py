"""The base class of rewards: a name, a weight, and a score for each finished episode.

A reward is one file in this package, or a user's own, with `@REWARDS.register("my_reward")` above its class. Rewards
are metrics too; there the weight does not count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import TypeVar

from memfactory.components import RewardOptions
from memfactory.engines.base import Engine
from memfactory.episode import Episode
from memfactory.plugins.boundary import checked_scores, guarded
from memfactory.registry import REWARDS, Component

RewardT = TypeVar("RewardT", bound=RewardOptions, default=RewardOptions, covariant=True)


class RewardFunction(Component[RewardT], ABC):
    """Scores episodes. `engines` are the run's engines by name, for rewards that ask a model.

    @REWARDS.register("brevity")
    class Brevity(RewardFunction):
        def score(self, episodes: Sequence[Episode]) -> list[float | None]:
            return [1 / (1 + len(episode.answer or "")) for episode in episodes]

    >>> from memfactory.types import Task
    >>> class Exact(RewardFunction):
    ...     def score(self, episodes):
    ...         return [float(episode.answer in episode.task.answers) for episode in episodes]
    >>> episode = Episode(Task("q1", "Where?", ("Oslo",)), answer="Oslo")
    >>> Exact(RewardOptions(), {}).score([episode])
    [1.0]
    """

    Options: ClassVar[type[RewardOptions]] = RewardOptions
    asks_a_model: ClassVar[bool] = False
    """Whether the reward asks a language model. Its option `engine` then names one of `engines:`."""

    def __init__(self, options: RewardT, engines: Mapping[str, Engine]) -> None:
        self.options = options
        self.engines = engines

    @property
    def name(self) -> str:
        """The registered name, under which the reward is logged."""
        return REWARDS.name_of(type(self))

    def scores(self, episodes: Sequence[Episode]) -> list[float | None]:
        """The scores, checked: one finite number or None an episode. Raises PluginError if a user's own reward fails or
        returns something else."""
        with guarded(type(self), doing="in scoring"):
            # A copy, which the reward may change.
            scores = self.score(list(episodes))
        return checked_scores(type(self), scores, len(episodes), [episode.task.id for episode in episodes])

    @abstractmethod
    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        """One score an episode, by convention in [0, 1]. None is unknown (a judge failed), which is not 0."""


class EpisodeReward(RewardFunction[RewardT]):
    """A reward that scores each episode by itself."""

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [self.score_of(episode) for episode in episodes]

    @abstractmethod
    def score_of(self, episode: Episode) -> float | None:
        """The score of one episode; None: unknown."""


def scores_by_name(rewards: Mapping[str, RewardFunction], episodes: Sequence[Episode]) -> list[dict[str, float | None]]:
    """Each episode's score by each reward. An episode that failed is not scored: all its scores are unknown."""
    played = [episode for episode in episodes if episode.failure is None]
    columns = {name: iter(reward.scores(played) if played else ()) for name, reward in rewards.items()}
    return [
        {name: next(column) if episode.failure is None else None for name, column in columns.items()}
        for episode in episodes
    ]

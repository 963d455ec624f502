"""What a reward is: a name, a weight, and a score for each finished episode.

A reward is one file in this package, or a user's own, with `@REWARDS.register("my_reward")` above its class. Rewards
serve as metrics too, where the weight does not count.
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
    """Scores episodes. `engines` are the run's engines by name, for rewards that ask a model."""

    Options: ClassVar[type[RewardOptions]] = RewardOptions
    asks_a_model: ClassVar[bool] = False
    """Whether it asks a language model. Its options then have `engine`, which names one of `engines:`."""

    def __init__(self, options: RewardT, engines: Mapping[str, Engine]) -> None:
        self.options = options
        self.engines = engines

    @property
    def name(self) -> str:
        """What the reward is registered as, and logged under."""
        return REWARDS.name_of(type(self))

    def scores(self, episodes: Sequence[Episode]) -> list[float | None]:
        """What `score` says, checked: one finite number or None an episode. Raises PluginError where a user's own
        reward says something else, or fails."""
        with guarded(type(self), doing="in scoring"):
            # A copy, which it may change.
            given = self.score(list(episodes))
        return checked_scores(type(self), given, len(episodes), [episode.task.id for episode in episodes])

    @abstractmethod
    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        """One score an episode, in [0, 1] by custom. None: unknown (a judge failed), which is never 0."""

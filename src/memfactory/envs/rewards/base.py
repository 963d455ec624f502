"""What a reward is: a name, a weight, and a score for each finished episode.

A reward is one file in this package, or a user's own, with `@REWARDS.register("my_reward")` above its class. Rewards
serve as metrics too, where the weight does not count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from memfactory.boundary import checked_scores, guarded
from memfactory.engines.base import Engine
from memfactory.registry import REWARDS, Options
from memfactory.types import AnswerForm, Episode


class RewardOptions(Options):
    """Options every reward has."""

    weight: float = Field(1.0, allow_inf_nan=False)
    """How much this reward counts in the total; 0: it is only logged."""

    @property
    def reads_form(self) -> AnswerForm | None:
        """The form that an answer must have to earn this reward; None: any, since the agent has taken it out of it."""
        return None


class RewardFunction(ABC):
    """Scores episodes. `engines` are the run's engines by name, for rewards that ask a model."""

    Options: ClassVar[type[RewardOptions]] = RewardOptions
    asks_a_model: ClassVar[bool] = False
    """Whether it asks a language model. Its options then have `engine`, which names one of `engines:`."""

    def __init__(self, options: Any, engines: Mapping[str, Engine]) -> None:
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

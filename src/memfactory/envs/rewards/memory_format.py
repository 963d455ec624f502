"""The reward `memory_format`: how well the replies that work on the memory kept to their formats.

It counts what those replies look like, so it belongs beside a reward of what comes of them, and far below it. Three
things keep it from being an aim of its own: an empty reply (no memory, no operation) is marked 0 by the modules; a step
that was to be asked and never was adds nothing; and where no step was asked at all the reward is 0, not unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.registry import REWARDS


class MemoryFormatOptions(RewardOptions):
    """Options of `memory_format`."""

    steps: tuple[str, ...] = Field(("extract", "update", "rerank"), min_length=1)
    """The module steps that count. An answer's form is left to the rewards that read the answer."""
    strict: bool = False
    """1 for attempts in which every reply is without a fault, else 0; false: the mean."""


@REWARDS.register("memory_format")
class MemoryFormat(RewardFunction[MemoryFormatOptions]):
    """The mean, over the module steps that were asked, of how well their replies kept to the format; 0 without any.

    Reads `episode.checks`.
    """

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> float:
        asked = [marks for step in self.options.steps if (marks := episode.checks.get(step))]
        if not asked:
            return 0.0
        if self.options.strict:
            return float(all(mark == 1 for marks in asked for mark in marks))
        return fmean(fmean(marks) for marks in asked)

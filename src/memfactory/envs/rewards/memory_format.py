"""The reward `memory_format`: whether the replies of the memory modules followed their formats.

It scores form only, so it belongs beside a reward of the answer, with a much smaller weight. Three rules keep a policy
from optimising it alone: modules give an empty reply (no memory, no operation) 0; a step without a call adds nothing;
and an episode without any such call scores 0, not unknown.
"""

from __future__ import annotations

from statistics import fmean

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.registry import REWARDS


class MemoryFormatOptions(RewardOptions):
    """Options of `memory_format`."""

    steps: tuple[str, ...] = Field(("extract", "update", "rerank"), min_length=1)
    """The module steps that count. The form of answers belongs to the rewards that read the answer."""
    strict: bool = False
    """Score 1 only if every reply has perfect form, else 0; false scores the mean."""


@REWARDS.register("memory_format")
class MemoryFormat(EpisodeReward[MemoryFormatOptions]):
    """Mean format score of the memory modules' replies, over the module steps; 0 without replies.

    Reads `episode.checks`.
    """

    def score_of(self, episode: Episode) -> float:
        by_step = [marks for step in self.options.steps if (marks := episode.checks.get(step))]
        if not by_step:
            return 0.0
        if self.options.strict:
            return float(all(mark == 1 for marks in by_step for mark in marks))
        return fmean(fmean(marks) for marks in by_step)

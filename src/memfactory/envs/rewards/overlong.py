"""The reward `overlong`: DAPO's soft penalty on replies close to the length limit."""

from __future__ import annotations

from statistics import fmean

from pydantic import Field, model_validator

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.types import Turn


class OverlongOptions(RewardOptions):
    """Options of `overlong`."""

    limit: int = Field(1024, ge=1)
    """L: the longest reply in tokens, usually the module's limit (`memory_tokens`, `max_tokens`)."""
    buffer: int = Field(128, ge=1)
    """C: the tokens before the limit over which the penalty grows."""
    steps: tuple[str, ...] = ()
    """The module steps whose replies count; empty counts every trained step."""

    @model_validator(mode="after")
    def _buffer_is_within_the_limit(self) -> OverlongOptions:
        if self.buffer > self.limit:
            raise ValueError(f"buffer is {self.buffer} and limit {self.limit}: the penalty would begin below 0 tokens")
        return self


@REWARDS.register("overlong")
class Overlong(EpisodeReward[OverlongOptions]):
    """DAPO's soft overlong penalty in [-1, 0]: mean over replies of their excess into the last `buffer` tokens.

    For a reply of n tokens: 0 for n <= L - C, (L - C - n) / C up to L, and -1 above (DAPO, arXiv 2503.14476, equation
    13). Reads the token counts of replies; unknown if an API gives none. 0 without a reply.
    """

    def score_of(self, episode: Episode) -> float | None:
        counted = [turn for turn in episode.turns if self._counts(turn, frozen=episode.frozen)]
        lengths = [turn.lengths[1] for turn in counted if turn.lengths is not None]
        if len(lengths) < len(counted):
            return None
        return fmean(map(self.penalty, lengths)) if lengths else 0.0

    def _counts(self, turn: Turn, *, frozen: bool) -> bool:
        """Whether the reply counts. In evaluation nothing is trained; without `steps` all replies count."""
        return turn.step in self.options.steps if self.options.steps else turn.trainable or frozen

    def penalty(self, length: int) -> float:
        """The penalty of one reply of `length` tokens."""
        over = length - (self.options.limit - self.options.buffer)
        return -min(1.0, max(0, over) / self.options.buffer)

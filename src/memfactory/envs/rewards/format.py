r"""The reward `format`: the reply holds exactly one usable `\boxed{}` answer. It does not know the gold answers."""

from __future__ import annotations

from collections.abc import Sequence

from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import REWARDS
from memfactory.text import boxed
from memfactory.types import Episode


@REWARDS.register("format")
class BoxedFormat(RewardFunction):
    r"""1 when the reply has exactly one \boxed{...}, its braces close and it is not blank."""

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [float(is_one_box(episode.answer or "")) for episode in episodes]


def is_one_box(reply: str) -> bool:
    r"""Whether `reply` has exactly one `\boxed{...}` (or `\fbox{...}`), closed and not blank."""
    contents = boxed(reply)
    return len(contents) == 1 and bool((contents[0] or "").strip())

r"""The reward `format`: the reply has exactly one usable `\boxed{}` answer. Gold answers do not matter."""

from __future__ import annotations

from memfactory.components import RewardOptions
from memfactory.envs.rewards.answers import answer_text
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.text import boxes
from memfactory.types import AnswerForm


class BoxedFormatOptions(RewardOptions):
    """Options of `format`."""

    @property
    def reads_form(self) -> AnswerForm:
        return "boxed"


@REWARDS.register("format")
class BoxedFormat(EpisodeReward[BoxedFormatOptions]):
    r"""1 if the reply has exactly one \boxed{...}, closed and not blank."""

    def score_of(self, episode: Episode) -> float:
        return float(is_one_box(answer_text(episode)))


def is_one_box(reply: str) -> bool:
    r"""Whether `reply` has exactly one `\boxed{...}`, closed and not blank."""
    spans = boxes(reply)
    return len(spans) == 1 and spans[0][1] is not None and bool(reply[slice(*spans[0])].strip())

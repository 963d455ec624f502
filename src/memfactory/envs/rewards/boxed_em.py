r"""The reward `boxed_em`: boxed exact match by the rule that MemAgent trains on (arXiv 2507.02259)."""

from __future__ import annotations

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.answers import answer_text
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.text import closing_braces, composed

DELETED = ("\n", "\\!")
REPLACED = (("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"))
DELETED_THEN = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%")


class BoxedExactMatchOptions(RewardOptions):
    """Options of `boxed_em`."""

    last_characters: int = Field(300, ge=1)
    """The number of characters at the end of the reply to search for the box."""


@REWARDS.register("boxed_em")
class BoxedExactMatch(EpisodeReward[BoxedExactMatchOptions]):
    r"""Exact match of the last \boxed{...} (case and spaces ignored), the reward of MemAgent.

    If the agent's prompt asks for the answer in another form, the answer that the agent took from its reply is compared
    instead, so that agents of every form are comparable.
    """

    def score_of(self, episode: Episode) -> float | None:
        if not episode.task.answers:
            return None
        if episode.answer_form in (None, "boxed"):
            content = final_boxed(answer_text(episode)[-self.options.last_characters :].lower())
        else:
            content = None if episode.answer is None else episode.answer.lower()
        if content is None:
            return 0.0
        answer = stripped(composed(content))
        return float(any(answer == stripped(composed(gold).lower()) for gold in episode.task.answers))


def final_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`; None without one, or if its brace is never closed.

    After `\boxed ` with a space, the content is the text up to a dollar sign. `\fbox{...}` does not count: MemAgent's
    scorer finds it but cannot open it.
    """
    if "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].partition("$")[0]
    brace = text.rfind("\\boxed") + len("\\boxed")
    end = closing_braces(text).get(brace) if "\\boxed" in text else None
    return None if end is None else text[brace + 1 : end]


def stripped(text: str) -> str:
    """`text` without line breaks, LaTeX's spacing, sizing, degree, dollar and percent marks, and any space."""
    for mark in DELETED:
        text = text.replace(mark, "")
    for old, new in REPLACED:
        text = text.replace(old, new)
    for mark in DELETED_THEN:
        text = text.replace(mark, "")
    return text.replace(" .", " 0.").replace("{.", "{0.").replace(" ", "")

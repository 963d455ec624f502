r"""The reward `boxed_em`: boxed exact match by the rule that MemAgent trains on (arXiv 2507.02259)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.answers import answer_text
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.text import closing_braces, composed

DELETED = ("\n", "\\!")
REPLACED = (("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"))
DELETED_THEN = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%")


class BoxedExactMatchOptions(RewardOptions):
    """Options of `boxed_em`."""

    last_characters: int = Field(300, ge=1)
    """Only the end of the reply is looked at: so many characters."""


@REWARDS.register("boxed_em")
class BoxedExactMatch(RewardFunction[BoxedExactMatchOptions]):
    r"""1 when the last \boxed{...} equals a gold answer but for case and spaces, as MemAgent trains.

    Where the agent's prompt asks for the answer in another form, the answer that the agent took from the reply counts
    in place of the box, so that agents of every form can be compared.
    """

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> float | None:
        if not episode.task.answers:
            return None
        if episode.answer_form in (None, "boxed"):
            content = final_boxed(answer_text(episode)[-self.options.last_characters :].lower())
        else:
            content = None if episode.answer is None else episode.answer.lower()
        if content is None:
            return 0.0
        said = stripped(composed(content))
        return float(any(said == stripped(composed(gold).lower()) for gold in episode.task.answers))


def final_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; None without one, and where its brace is never closed, whatever is before it.

    Where `\boxed ` with a space occurs, all that follows it counts, up to a dollar sign. `\fbox{...}` counts as none:
    MemAgent's scorer finds it but cannot open it.
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

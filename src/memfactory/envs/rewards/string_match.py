"""RULER's rewards: gold answers that occur in the reply (arXiv 2404.06654). Case does not count."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from memfactory.envs.rewards.answers import AnswerOptions, AnswerReward, Extract
from memfactory.registry import REWARDS


class StringMatchOptions(AnswerOptions):
    """Options of `string_match_all` and `string_match_part`."""

    extract: Extract = "all"
    """The text to score; RULER scores the whole reply."""


@REWARDS.register("string_match_part")
class StringMatchPart(AnswerReward[StringMatchOptions]):
    """RULER's string match for question answering: 1 if any gold answer occurs in the reply."""

    def against(self, answer: str, gold: str) -> float:
        return float(bool(gold) and gold.lower() in answer.lower())


@REWARDS.register("string_match_all")
class StringMatchAll(StringMatchPart):
    """RULER's string match: fraction of the gold answers that occur in the reply (not rounded)."""

    def worth(self, answer: str, golds: Sequence[str]) -> float:
        return fmean(self.against(answer, gold) for gold in golds)

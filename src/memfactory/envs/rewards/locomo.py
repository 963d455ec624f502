"""LoCoMo's own metrics: `locomo_f1` and `locomo_em` (arXiv 2402.17753; its repository's task_eval/evaluation.py, 2024).

Words are what its normal form leaves: lower case, ASCII punctuation gone (so "mental-health" is one word and not
"mental health"), a, an, the and the word "and" gone. Other scripts call other things F1 and EM: see `mem0_f1`, `f1`
and `em`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from statistics import fmean

from memfactory.envs.rewards.answers import PUNCTUATION, AnswerOptions, AnswerReward, Extract, answer_of
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.text import composed
from memfactory.types import Scalar

MULTI_HOP, OPEN_DOMAIN, ADVERSARIAL = 1, 3, 5
DECLINED = ("no information available", "not mentioned")
DROPPED = re.compile(r"\b(a|an|the|and)\b")


class LocomoMetricOptions(AnswerOptions):
    """Options of `locomo_f1` and `locomo_em`."""

    extract: Extract = "answer"
    """Which answer counts; LoCoMo's script looks at the whole of it."""


@REWARDS.register("locomo_f1")
class LocomoF1(AnswerReward[LocomoMetricOptions]):
    """LoCoMo's F1: of stemmed words, by the question's category. The best gold answer counts.

    F1 = 2 |S & G| / (|S| + |G|) over the multisets of stems (nltk's Porter stemmer) of answer and gold answer; none in
    common is 0. Category 1 compares lists: both are cut at commas, and each part of the gold answer counts alike with
    its best part of the answer (so "7 May, 2023" against "7 May 2023" is 0.8). Category 3 takes the gold answer up to
    its semicolon. Category 5 is 1 where the answer says "no information available" or "not mentioned", whatever the
    gold answer, else 0. Where the task has no category, as for categories 2 and 4, F1 is plain.
    """

    def _score(self, episode: Episode) -> float | None:
        golds = episode.task.answers
        category = category_of(episode.task.meta.get("category"))
        answer = answer_of(episode, self.options.extract)
        if category == ADVERSARIAL:
            said = (answer or "").lower()
            return float(any(phrase in said for phrase in DECLINED))
        if not golds:
            return None
        return 0.0 if answer is None else max(locomo_f1(answer, gold, category) for gold in golds)

    def against(self, answer: str, gold: str) -> float:
        return stemmed_f1(answer, gold)


@REWARDS.register("locomo_em")
class LocomoExactMatch(AnswerReward[LocomoMetricOptions]):
    """LoCoMo's exact match: the sets of words are equal, so order and repetition do not count. Nothing is stemmed."""

    def against(self, answer: str, gold: str) -> float:
        said = set(words(answer))
        return float(bool(said) and said == set(words(gold)))


def locomo_f1(answer: str, gold: str, category: int | None) -> float:
    """What `answer` is worth against one gold answer to a question of `category` (not an adversarial one)."""
    if category == MULTI_HOP:
        parts = answer.split(",")
        return fmean(max(stemmed_f1(part, wanted) for part in parts) for wanted in gold.split(","))
    return stemmed_f1(answer, gold.partition(";")[0] if category == OPEN_DOMAIN else gold)


def stemmed_f1(answer: str, gold: str) -> float:
    """F1 of the stems of two texts as multisets; 0 where they share none."""
    stem = _stemmer()
    said, wanted = Counter(map(stem, words(answer))), Counter(map(stem, words(gold)))
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total()) if shared else 0.0


def words(text: str) -> list[str]:
    """The words of LoCoMo's normal form of `text`."""
    return DROPPED.sub(" ", composed(text).replace(",", "").lower().translate(PUNCTUATION)).split()


def category_of(value: Scalar) -> int | None:
    """A category as it stands in a task: a number, also as a text. None for anything else."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem

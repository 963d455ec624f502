"""LoCoMo's own metrics: `locomo_f1` and `locomo_em` (arXiv 2402.17753; its repository's task_eval/evaluation.py, 2024).

Words are those of its normal form: lower case, without ASCII punctuation ("mental-health" is one word and not "mental
health"), without a, an, the and the word "and". Other scripts define F1 and EM otherwise: see `mem0_f1`, `f1` and `em`.
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
    """The text to score; LoCoMo's script scores the whole answer."""


@REWARDS.register("locomo_f1")
class LocomoF1(AnswerReward[LocomoMetricOptions]):
    """LoCoMo's F1 of stemmed words, by the question's category, against the best gold answer.

    F1 = 2 |S & G| / (|S| + |G|) over the multisets of stems (nltk's Porter stemmer) of answer and gold answer; 0
    without common stems. Category 1 compares lists: both are split at commas, and the score is the mean over the gold
    answer's elements of their best F1 ("7 May, 2023" against "7 May 2023" is 0.8). Category 3 uses the gold answer up
    to its semicolon. Category 5 is 1 if the answer contains "no information available" or "not mentioned", else 0; the
    gold answer does not matter. Categories 2 and 4, and tasks without a category, use plain F1.
    """

    def score_of(self, episode: Episode) -> float | None:
        golds = episode.task.answers
        category = category_of(episode.task.meta.get("category"))
        answer = answer_of(episode, self.options.extract)
        if category == ADVERSARIAL:
            lower = (answer or "").lower()
            return float(any(phrase in lower for phrase in DECLINED))
        if not golds:
            return None
        return 0.0 if answer is None else max(locomo_f1(answer, gold, category) for gold in golds)

    def against(self, answer: str, gold: str) -> float:
        return stemmed_f1(answer, gold)


@REWARDS.register("locomo_em")
class LocomoExactMatch(AnswerReward[LocomoMetricOptions]):
    """LoCoMo's exact match: equal sets of words (order and repetition ignored), without stemming."""

    def against(self, answer: str, gold: str) -> float:
        answer_words = set(words(answer))
        return float(bool(answer_words) and answer_words == set(words(gold)))


def locomo_f1(answer: str, gold: str, category: int | None) -> float:
    """The F1 of `answer` against one gold answer to a question of `category` (not an adversarial one)."""
    if category == MULTI_HOP:
        elements = answer.split(",")
        return fmean(max(stemmed_f1(element, target) for element in elements) for target in gold.split(","))
    return stemmed_f1(answer, gold.partition(";")[0] if category == OPEN_DOMAIN else gold)


def stemmed_f1(answer: str, gold: str) -> float:
    """F1 of the stems of two texts as multisets; 0 without common stems."""
    stem = _stemmer()
    answer_stems, gold_stems = Counter(map(stem, words(answer))), Counter(map(stem, words(gold)))
    shared = (answer_stems & gold_stems).total()
    return 2 * shared / (answer_stems.total() + gold_stems.total()) if shared else 0.0


def words(text: str) -> list[str]:
    """The words of LoCoMo's normal form of `text`."""
    return DROPPED.sub(" ", composed(text).replace(",", "").lower().translate(PUNCTUATION)).split()


def category_of(value: Scalar) -> int | None:
    """A task's category as a number, also from a text of digits; None for anything else."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem

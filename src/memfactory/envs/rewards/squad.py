"""The rewards of question answering on SQuAD's normal form: `em`, `sub_em` and `f1`.

An answer with an empty normal form ("The", "...") scores 0; MemAgent's own script counts it as right in `sub_em`, since
the empty text is part of every text.
"""

from __future__ import annotations

from collections import Counter

from memfactory.envs.rewards.answers import AnswerReward, normalised, same_as_written
from memfactory.registry import REWARDS

CLOSED = {"yes", "no", "noanswer"}


@REWARDS.register("em")
class ExactMatch(AnswerReward):
    """SQuAD-normalised exact match (case, punctuation, articles and whitespace ignored)."""

    def against(self, answer: str, gold: str) -> float:
        return float(_equal(normalised(answer), normalised(gold), answer, gold))


@REWARDS.register("sub_em")
class SubstringMatch(AnswerReward):
    """MemAgent's substring match: the SQuAD-normalised answer contains the gold answer, or the reverse.

    Lenient by design: "1" matches the gold answer "1961", and "no" matches "November".
    """

    def against(self, answer: str, gold: str) -> float:
        ours, theirs = normalised(answer), normalised(gold)
        if ours and theirs:
            return float(theirs in ours or ours in theirs)
        return float(_equal(ours, theirs, answer, gold))


@REWARDS.register("f1")
class WordF1(AnswerReward):
    """SQuAD-normalised word F1, as HotpotQA scores it.

    The answers yes, no and noanswer score 0 unless both sides are the same.
    """

    def against(self, answer: str, gold: str) -> float:
        ours, theirs = normalised(answer), normalised(gold)
        if not (ours and theirs) or (ours != theirs and {ours, theirs} & CLOSED):
            return float(_equal(ours, theirs, answer, gold))
        answer_words, gold_words = ours.split(), theirs.split()
        shared = sum((Counter(answer_words) & Counter(gold_words)).values())
        return 2 * shared / (len(answer_words) + len(gold_words))


def _equal(ours: str, theirs: str, answer: str, gold: str) -> bool:
    return ours == theirs if theirs else same_as_written(answer, gold)

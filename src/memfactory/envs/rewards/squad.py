"""The rewards of question answering on SQuAD's normal form: `em`, `sub_em` and `f1`.

An answer of which the normal form leaves nothing ("The", "...") scores 0; MemAgent's own script counts it as right in
`sub_em`, since the empty text is part of every text.
"""

from __future__ import annotations

from collections import Counter

from memfactory.envs.rewards.answers import AnswerReward, normalised, same_as_written
from memfactory.registry import REWARDS

CLOSED = {"yes", "no", "noanswer"}


@REWARDS.register("em")
class ExactMatch(AnswerReward):
    """Exact match in SQuAD's normal form: case, punctuation, articles and spacing do not count."""

    def against(self, answer: str, gold: str) -> float:
        return float(_equal(normalised(answer), normalised(gold), answer, gold))


@REWARDS.register("sub_em")
class SubstringMatch(AnswerReward):
    """MemAgent's evaluation: in SQuAD's normal form one of answer and gold answer is part of the other.

    Lenient by design: "1" is right where "1961" is asked for, and "no" where the gold answer is "November".
    """

    def against(self, answer: str, gold: str) -> float:
        said, wanted = normalised(answer), normalised(gold)
        if said and wanted:
            return float(wanted in said or said in wanted)
        return float(_equal(said, wanted, answer, gold))


@REWARDS.register("f1")
class WordF1(AnswerReward):
    """F1 of the answer's words against the gold answer's, in SQuAD's normal form.

    As HotpotQA scores it: yes, no and noanswer earn nothing unless both are the same.
    """

    def against(self, answer: str, gold: str) -> float:
        said, wanted = normalised(answer), normalised(gold)
        if not (said and wanted) or (said != wanted and {said, wanted} & CLOSED):
            return float(_equal(said, wanted, answer, gold))
        words, golden = said.split(), wanted.split()
        shared = sum((Counter(words) & Counter(golden)).values())
        return 2 * shared / (len(words) + len(golden))


def _equal(said: str, wanted: str, answer: str, gold: str) -> bool:
    return said == wanted if wanted else same_as_written(answer, gold)

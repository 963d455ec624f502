r"""Rewards by rule on an answer and its gold answers: how an answer is found in a reply, and how texts are compared.

Rule-based rewards derive from `AnswerReward` and say what one answer is worth against one gold answer; the best gold
answer counts. A task without gold answers has an unknown score.

`extract` says where the answer stands:

- `boxed`: the last `\boxed{...}` whose braces close (or `\fbox{...}`, `\boxed x`), `\text{...}` around words removed;
- `the_answer_is`: what follows the last "the answer is", without asterisks and a final full stop;
- `all`: the whole reply;
- `auto`: `boxed` where there is one, else `the_answer_is`, else `all`.

A reply without what `extract` asks for scores 0.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from memfactory.envs.rewards.base import RewardFunction, RewardOptions
from memfactory.text import last_boxed
from memfactory.types import Episode

Extract = Literal["boxed", "the_answer_is", "all", "auto"]

PUNCTUATION = str.maketrans("", "", string.punctuation)
LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|emph|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
THE_ANSWER_IS = re.compile(r"the answer is", re.IGNORECASE)


class AnswerOptions(RewardOptions):
    """Options of rewards that compare an answer with gold answers."""

    extract: Extract = "auto"
    """Where the answer stands: boxed, the_answer_is, all, or auto (the first of these that is there)."""


class AnswerReward(RewardFunction):
    """A reward by rule: what the answer is worth against its best gold answer."""

    Options: ClassVar[type[AnswerOptions]] = AnswerOptions
    options: AnswerOptions

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> float | None:
        golds = episode.task.answers
        if not golds:
            return None
        answer = extracted(episode.answer or "", self.options.extract)
        return 0.0 if answer is None else self.worth(answer, golds)

    def worth(self, answer: str, golds: Sequence[str]) -> float:
        """What `answer` is worth, in [0, 1]: its worth against the best of `golds`, of which there is at least one."""
        return max(self.against(answer, gold) for gold in golds)

    @abstractmethod
    def against(self, answer: str, gold: str) -> float:
        """What `answer` is worth against one gold answer, in [0, 1]."""


def extracted(reply: str, extract: Extract) -> str | None:
    """The answer in `reply` where `extract` says it stands; None when it is not there."""
    if extract == "all":
        return reply
    if extract == "boxed":
        return _boxed(reply)
    if extract == "the_answer_is":
        return _after_the_answer_is(reply)
    found = _boxed(reply)
    found = _after_the_answer_is(reply) if found is None else found
    return reply if found is None else found


def _boxed(reply: str) -> str | None:
    content = last_boxed(reply)
    while content is not None and (plain := LATEX_TEXT.sub(r"\1", content)) != content:
        content = plain
    return content


def _after_the_answer_is(reply: str) -> str | None:
    pieces = THE_ANSWER_IS.split(reply.replace("*", ""))
    return pieces[-1].strip().strip(".").strip() if len(pieces) > 1 else None


def normalised(text: str) -> str:
    """SQuAD's normal form (arXiv 1606.05250): lower case, no ASCII punctuation, no articles, single spaces."""
    plain = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION))
    return " ".join(plain.split())


def same_as_written(answer: str, gold: str) -> bool:
    """Equal but for case and spacing: for a gold answer of which `normalised` leaves nothing, such as "The The"."""
    return answer.lower().split() == gold.lower().split()

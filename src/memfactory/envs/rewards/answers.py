r"""Rewards by rule on an answer and its gold answers: which answer counts, and how texts are compared.

Rule-based rewards derive from `AnswerReward` and say what one answer is worth against one gold answer; the best gold
answer counts. A task without gold answers has an unknown score.

`extract` says which answer counts:

- `answer`: the one that the agent took from its reply, in the form that its prompt asks for;
- `auto`: the same, and where that still holds a box or "the answer is", what stands there;
- `all`: the whole text that the agent took its answer from, as RULER looks at it;
- `boxed`: the last `\boxed{...}` of that text whose braces close (or `\boxed x`, `\fbox{...}`), `\text{...}` around
  words removed;
- `the_answer_is`: what follows the last "the answer is" in that text, without asterisks and a final full stop.

An attempt without what `extract` asks for scores 0.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from typing_extensions import TypeVar

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.formats.answers import after_the_answer_is, boxed_answer
from memfactory.text import composed
from memfactory.types import AnswerForm

Extract = Literal["answer", "auto", "all", "boxed", "the_answer_is"]

PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExtractOptions(RewardOptions):
    """Options of rewards that read an answer."""

    extract: Extract = "auto"
    """Which answer counts: the agent's (answer), also unwrapped (auto), the whole reply (all), boxed, the_answer_is."""

    @property
    def reads_form(self) -> AnswerForm | None:
        return self.extract if self.extract in ("boxed", "the_answer_is") else None


class AnswerOptions(ExtractOptions):
    """Options of rewards that compare an answer with gold answers."""


AnswerT = TypeVar("AnswerT", bound=AnswerOptions, default=AnswerOptions, covariant=True)


class AnswerReward(RewardFunction[AnswerT]):
    """A reward by rule: what the answer is worth against its best gold answer."""

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> float | None:
        golds = episode.task.answers
        if not golds:
            return None
        answer = answer_of(episode, self.options.extract)
        return 0.0 if answer is None else self.worth(composed(answer), [composed(gold) for gold in golds])

    def worth(self, answer: str, golds: Sequence[str]) -> float:
        """What `answer` is worth, in [0, 1]: its worth against the best of `golds`, of which there is at least one."""
        return max(self.against(answer, gold) for gold in golds)

    @abstractmethod
    def against(self, answer: str, gold: str) -> float:
        """What `answer` is worth against one gold answer, in [0, 1]."""


def answer_text(episode: Episode) -> str:
    """The text that the agent took its answer from; empty where there is none."""
    return (episode.answer if episode.answer_text is None else episode.answer_text) or ""


def answer_of(episode: Episode, extract: Extract) -> str | None:
    """The answer that counts under `extract`; None when it is not there."""
    if extract == "answer":
        return episode.answer or ""
    return extracted((episode.answer or "") if extract == "auto" else answer_text(episode), extract)


def extracted(reply: str, extract: Extract) -> str | None:
    """The answer in `reply` where `extract` says it stands; None when it is not there."""
    if extract == "boxed":
        return boxed_answer(reply)
    if extract == "the_answer_is":
        return after_the_answer_is(reply)
    if extract == "auto":
        found = boxed_answer(reply)
        found = after_the_answer_is(reply) if found is None else found
        return reply if found is None else found
    return reply


def normalised(text: str) -> str:
    """SQuAD's normal form (arXiv 1606.05250): lower case, no ASCII punctuation, no articles, single spaces."""
    plain = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION))
    return " ".join(plain.split())


def same_as_written(answer: str, gold: str) -> bool:
    """Equal but for case and spacing: for a gold answer of which `normalised` leaves nothing, such as "The The"."""
    return answer.lower().split() == gold.lower().split()

r"""Rewards that compare an answer with gold answers by rule: which text is the answer, and how texts are compared.

Such rewards derive from `AnswerReward` and score an answer against one gold answer; the best gold answer counts. A task
without gold answers has an unknown score.

`extract` chooses the answer:

- `answer`: the agent's answer, taken from its reply in the form that its prompt asks for;
- `auto`: the same, unwrapped from a box or "the answer is" that it still contains;
- `all`: the whole reply that the agent took its answer from, as RULER scores it;
- `boxed`: the last `\boxed{...}` of that reply whose braces close (or `\boxed x`, `\fbox{...}`), without `\text{...}`
  around words;
- `the_answer_is`: the text after the last "the answer is" in that reply, without asterisks and a final full stop.

An episode without such an answer scores 0.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from typing_extensions import TypeVar

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.formats.answers import after_the_answer_is, boxed_answer
from memfactory.text import composed
from memfactory.types import AnswerForm

Extract = Literal["answer", "auto", "all", "boxed", "the_answer_is"]

PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExtractOptions(RewardOptions):
    """Options of rewards that read an answer."""

    extract: Extract = "auto"
    """The text to score: the agent's answer, auto (the same, unwrapped), all (the reply), boxed, or the_answer_is."""

    @property
    def reads_form(self) -> AnswerForm | None:
        return self.extract if self.extract in ("boxed", "the_answer_is") else None


class AnswerOptions(ExtractOptions):
    """Options of rewards that compare an answer with gold answers."""


AnswerT = TypeVar("AnswerT", bound=AnswerOptions, default=AnswerOptions, covariant=True)


class AnswerReward(EpisodeReward[AnswerT]):
    """A reward by rule: the score of the answer against its best gold answer."""

    def score_of(self, episode: Episode) -> float | None:
        golds = episode.task.answers
        if not golds:
            return None
        answer = answer_of(episode, self.options.extract)
        return 0.0 if answer is None else self.worth(composed(answer), [composed(gold) for gold in golds])

    def worth(self, answer: str, golds: Sequence[str]) -> float:
        """The score of `answer` in [0, 1]: by default against the best of `golds`, of which there is at least one."""
        return max(self.against(answer, gold) for gold in golds)

    @abstractmethod
    def against(self, answer: str, gold: str) -> float:
        """The score of `answer` against one gold answer, in [0, 1]."""


def answer_text(episode: Episode) -> str:
    """The reply that the agent took its answer from; empty if it has none."""
    return (episode.answer if episode.answer_text is None else episode.answer_text) or ""


def answer_of(episode: Episode, extract: Extract) -> str | None:
    """The answer of an episode by `extract`; None if it has none."""
    if extract == "answer":
        return episode.answer or ""
    return extracted((episode.answer or "") if extract == "auto" else answer_text(episode), extract)


def extracted(reply: str, extract: Extract) -> str | None:
    """The answer in `reply` by `extract`; None if it has none."""
    if extract == "boxed":
        return boxed_answer(reply)
    if extract == "the_answer_is":
        return after_the_answer_is(reply)
    if extract == "auto":
        answer = boxed_answer(reply)
        answer = after_the_answer_is(reply) if answer is None else answer
        return reply if answer is None else answer
    return reply


def normalised(text: str) -> str:
    """SQuAD's normal form (arXiv 1606.05250): lower case, no ASCII punctuation, no articles, single spaces."""
    plain = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION))
    return " ".join(plain.split())


def same_as_written(answer: str, gold: str) -> bool:
    """Equal except for case and spacing: for a gold answer whose normal form is empty, such as "The The"."""
    return answer.lower().split() == gold.lower().split()

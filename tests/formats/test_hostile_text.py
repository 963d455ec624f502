"""The time for a model's text grows about linearly with its length, whatever it says."""

from __future__ import annotations

import time

import pytest

from memfactory.envs.judge import read_verdict
from memfactory.envs.rewards.locomo import stemmed_f1
from memfactory.envs.row_fields import listed_texts
from memfactory.episode import Episode
from memfactory.errors import DataError
from memfactory.formats.answers import bare_answer
from memfactory.formats.parse import parse_extraction, parse_topics
from memfactory.memory.words import terms
from memfactory.modules.citing_answer import parse_cited
from memfactory.modules.rerank_retriever import parse_choice
from memfactory.registry import REWARDS
from memfactory.types import Task


def unread_array(text):
    with pytest.raises(DataError):
        listed_texts(text)


READERS = {
    "extraction": parse_extraction,
    "topics": lambda text: parse_topics(text, 5),
    "choice": lambda text: parse_choice(text, 20, 5),
    "cited": lambda text: parse_cited(text, 5),
    "verdict": read_verdict,
    "answer": lambda text: bare_answer(text, "marker"),
    "stems": lambda text: stemmed_f1(text, "a b"),
    "terms": terms,
    "listed": listed_texts,
    "array": lambda text: unread_array(f"array([None, 'a', {text}])"),
}
HOSTILE = (
    '{"facts": ["a", ',
    '{"a": {"b": [',
    "{",
    "[1, ",
    "mr. ",
    "\\boxed{\\text{",
    "<think>",
    "['a' ",
    "a\u0301",
    "'",
)


def seconds(read, pattern, length):
    text = "[" + pattern * (length // len(pattern))
    best = 9.0
    for _ in range(2):
        begun = time.process_time()
        read(text)
        best = min(best, time.process_time() - begun)
    return best


def is_linear(read, pattern):
    """Eight times the length takes far less than 64 times the time."""
    return seconds(read, pattern, 40_000) < 24 * max(seconds(read, pattern, 5_000), 0.003)


@pytest.mark.parametrize("name", READERS)
def test_reading_a_hostile_reply_takes_linear_time(name):
    assert [pattern for pattern in HOSTILE if not is_linear(READERS[name], pattern)] == []


@pytest.mark.parametrize("name", ["em", "sub_em", "f1", "boxed_em", "bleu1", "mem0_f1", "format", "string_match_all"])
def test_scoring_a_hostile_answer_takes_linear_time(name):
    reward = REWARDS.get(name)(REWARDS.options(name)(), {})

    def scored(text):
        return reward.score([Episode(Task("t", "Who?", ("seven",)), answer=text, answer_text=text)])

    assert [pattern for pattern in HOSTILE if not is_linear(scored, pattern)] == []


def test_an_object_behind_some_unreadable_braces_is_still_found():
    said = "{oops " * 500 + '{"memory_list": [{"key": "a", "value": "b"}]}'
    assert len(parse_extraction(said).candidates) == 1

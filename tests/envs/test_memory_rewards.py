"""Rewards of memory agents, against numbers derived by hand: format, evidence, compression and citations."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from memfactory.envs.judge import read_verdict
from memfactory.episode import Episode
from memfactory.memory.bank import BankSource
from memfactory.registry import REWARDS
from memfactory.types import MemoryItem, Task, Utterance

TASK = Task("t", "Who?", ("Ada",), evidence=("D1:1", "D1:4"))
BANKS = BankSource()


def item(id, *sources, value="something"):
    return MemoryItem(id, "", f"{value} {id}", sources=sources)


def reward(name, **options):
    return REWARDS.get(name)(REWARDS.options(name)(**options), {})


def score(name, episode, **options):
    (only,) = reward(name, **options).score([episode])
    return only


def checked(**checks):
    return Episode(TASK, checks=checks)


@pytest.mark.parametrize(
    ("checks", "mean", "strict"),
    [
        ({"extract": [1.0], "update": [0.5]}, 0.75, 0.0),
        ({"extract": [1.0, 0.5], "update": [0.25]}, 0.5, 0.0),  # (0.75 + 0.25) / 2: steps count alike, replies do not
        ({"extract": [1.0], "update": [1.0], "rerank": [1.0]}, 1.0, 1.0),
        ({"extract": [0.0]}, 0.0, 0.0),  # nothing was written down, so no update was asked for
        ({"extract": [0.0], "answer": [1.0]}, 0.0, 0.0),  # the answer's form is not the memory's
        ({"extract": []}, 0.0, 0.0),
        ({}, 0.0, 0.0),  # who asks nothing keeps to no format
    ],
)
def test_the_format_of_the_replies_that_work_on_the_memory(checks, mean, strict):
    assert score("memory_format", checked(**checks)) == mean
    assert score("memory_format", checked(**checks), strict=True) == strict


def test_the_format_of_some_steps_only():
    episode = checked(extract=[0.0], rerank=[0.5], answer=[1.0])
    assert score("memory_format", episode, steps=["rerank"]) == 0.5
    assert score("memory_format", episode, steps=["rerank", "answer"]) == 0.75
    assert score("memory_format", episode, steps=["update"]) == 0.0
    with pytest.raises(ValidationError):
        reward("memory_format", steps=[])


def test_evidence_recall_is_the_share_of_the_gold_evidence_among_the_first_k():
    episode = Episode(TASK, retrieved=(item("a", "D2:1"), item("b", "D1:4", "D1:5"), item("c", "D1:1")))
    assert score("evidence_recall", episode) == 1.0
    assert [score("evidence_recall", episode, k=k) for k in (1, 2, 3, 9)] == [0.0, 0.5, 1.0, 1.0]
    assert score("evidence_recall", Episode(TASK)) == 0.0
    assert score("evidence_recall", Episode(TASK, retrieved=(item("b", "D1:4"), item("c", "D1:4")))) == 0.5


def test_evidence_that_the_bank_kept_and_lost():
    bank = BANKS.open([item("a", "D1:1", "D7:7"), item("b", "D1:4")])
    episode = Episode(TASK, bank=bank)
    assert (score("evidence_kept", episode), score("m_fail", episode)) == (1.0, 0.0)
    bank.delete("b")
    assert (score("evidence_kept", episode), score("m_fail", episode)) == (0.5, 0.5)
    without = Episode(TASK)
    assert (score("evidence_kept", without), score("m_fail", without)) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["evidence_recall", "evidence_kept", "m_fail"])
def test_without_gold_evidence_a_score_on_it_is_unknown(name):
    assert score(name, Episode(replace(TASK, evidence=()), bank=BANKS.open([item("a", "D1:1")]))) is None


def bank_of(words):
    return BANKS.open([MemoryItem("a", "", " ".join(["word"] * words))] if words else [])


@pytest.mark.parametrize(
    ("words", "penalty"),
    [
        (0, 0.0),
        (7, 0.0),  # 7 words of 10: just 0.7
        (8, -0.1),  # (8 - 0.7 x 10) / 10
        (17, -1.0),  # (17 - 7) / 10
    ],
)
def test_compression_costs_nothing_up_to_the_share_of_the_words_seen(words, penalty):
    heard = (Utterance("Ada", "one two three four five"), Utterance("Bob", "six seven eight nine ten"))
    episode = Episode(replace(TASK, conversation=heard), bank=bank_of(words))
    assert score("compression", episode) == pytest.approx(penalty, abs=1e-12)
    assert str(score("compression", Episode(replace(TASK, conversation=heard)))) == "0.0"


def test_compression_counts_what_was_in_the_memory_before_as_seen():
    # Seen: 2 words heard and 8 in the memory; kept: 8 words, "key: value" among them. (8 - 0.5 x 10) / 10.
    before = (MemoryItem("a", "pet", "a b c"), MemoryItem("b", "", "a b c d"))
    task = replace(TASK, memory=before, conversation=(Utterance("Ada", "two words"),))
    assert score("compression", Episode(task, bank=BANKS.open(before)), fraction=0.5) == pytest.approx(-0.3)
    assert score("compression", Episode(TASK, bank=bank_of(5))) == 0.0  # nothing was seen


def test_compression_counts_a_text_that_was_read_as_seen():
    # Ten words seen, nine kept: 0.9 - 0.7 = 0.2 too many.
    task = replace(TASK, conversation=(), context="one two three four five\n\nsix seven eight nine ten")
    assert score("compression", Episode(task, bank=bank_of(9))) == pytest.approx(-0.2)


def test_citations_are_the_share_of_the_retrieved_items_that_the_answer_cites():
    retrieved = (item("a", "D1:1"), item("b", "D2:2"), item("c", "D3:3"), item("d", "D1:4"))
    episode = Episode(TASK, retrieved=retrieved, citations=("a", "b"))
    assert score("citations", episode) == 0.5
    assert score("citations", episode, kind="evidence") == 0.25  # b holds no gold evidence
    for citations in ((), None, ("zz",)):
        assert score("citations", replace(episode, citations=citations)) == 0.0
    assert score("citations", Episode(TASK, citations=())) == 0.0
    assert score("citations", Episode(replace(TASK, evidence=()), retrieved=retrieved), kind="evidence") is None


def test_a_citation_that_is_repeated_counts_once():
    # The reference pays for the same id again: eight times [1] with one citation earn all there is.
    retrieved = (item("a", "D1:1"), item("b", "D2:2"))
    assert score("citations", Episode(TASK, retrieved=retrieved, citations=("a",) * 8)) == 0.5


@pytest.mark.parametrize("reply", ["That is Not True", "True", '{"verdict": ' + "1" * 5000 + "}"])
def test_a_verdict_is_never_a_part_of_what_the_judge_says(reply):
    # The reference looks for "True" in the last 100 characters, and finds it in "Not True".
    assert read_verdict(reply) is None

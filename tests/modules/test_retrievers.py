"""The retrievers that learn nothing of their own, and what becomes of a reranker's reply."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.memory.bank import BankSource
from memfactory.modules.naive_retriever import NaiveRetriever, NaiveRetrieverOptions
from memfactory.modules.rerank_retriever import Choice, RerankRetriever, RerankRetrieverOptions, parse_choice
from memfactory.play import Sampler, play
from memfactory.registry import Options
from memfactory.types import MemoryItem, Task
from retrieving import Retrieving
from word_codec import NoCodec

PROMPT = "{limit}|{question}|{memory}"
ITEMS = (
    MemoryItem("a", "", "the cat sleeps", namespace="Ann"),
    MemoryItem("b", "", "the red cat eats fish", namespace="Ann"),
    MemoryItem("c", "", "a dog barks", namespace="Bob"),
    MemoryItem("d", "", "one red fish", namespace="Bob"),
)


def played(module, reply="", items: Sequence[MemoryItem] = ITEMS, question="red cat fish") -> tuple[Episode, list[str]]:
    """The episode after retrieval, and the prompts that were asked."""
    engine = ScriptedEngine(lambda messages, sampling: reply)
    agent = Retrieving(Options(), {"retriever": module}, BankSource())
    (episode,) = play(
        Sampler(agent, {"policy": engine}), [Episode(Task("t", question, ("gold",), memory=tuple(items)))]
    )
    return episode, [messages[-1].content for messages, _ in engine.requests]


def naive(**options) -> NaiveRetriever:
    return NaiveRetriever(NaiveRetrieverOptions.model_validate(options), NoCodec())


def rerank(**options) -> RerankRetriever:
    return RerankRetriever(RerankRetrieverOptions.model_validate({"prompt": PROMPT} | options), NoCodec())


def ids(episode: Episode) -> list[str]:
    return [item.id for item in episode.retrieved]


# naive_retriever


def test_the_naive_retriever_takes_the_best_matching_items_and_asks_nobody():
    # b shares all three words with the question, d two of its three, a one, c none.
    episode, asked = played(naive(k=2))
    assert (ids(episode), asked) == (["b", "d"], [])


def test_k_counts_for_each_namespace_where_that_is_wanted():
    # The best of Ann's (b) and the best of Bob's (d); without it both of the best two could be one person's.
    assert ids(played(naive(k=1, per_namespace=True))[0]) == ["b", "d"]
    assert ids(played(naive(k=1))[0]) == ["b"]


def test_the_best_of_several_namespaces_come_in_the_order_of_their_scores():
    episode, _ = played(naive(k=2, per_namespace=True), question="one red fish")
    assert ids(episode)[:2] == ["d", "b"]
    assert len(episode.retrieved) == 4


def test_items_below_the_least_score_are_left_out():
    assert ids(played(naive(min_score=0.3))[0]) == ["b", "d"]


def test_an_empty_bank_retrieves_nothing():
    assert ids(played(naive(), items=())[0]) == []


# parse_choice


def test_a_bare_list_is_taken_as_it_is():
    assert parse_choice("[3, 1]", 4, 5) == Choice((3, 1), 1.0)
    assert parse_choice(" [2]\n", 4, 5) == Choice((2,), 1.0)


def test_a_number_that_comes_twice_counts_once():
    # The reference counts each: eight times the same cited item earned the highest reward there is.
    assert parse_choice("[1, 1, 1, 1, 1, 1, 1, 1]", 4, 8) == Choice((1,), 1 / 8)


def test_numbers_that_were_not_shown_are_left_out():
    # The reference took [99] for a well-formed choice.
    assert parse_choice("[99]", 4, 8) == Choice((), 0.0)
    assert parse_choice("[0, 2, -1, 5, 4]", 4, 8) == Choice((2, 4), 2 / 5)


def test_what_comes_after_the_limit_is_cut_off():
    assert parse_choice("[4, 3, 2, 1]", 4, 3) == Choice((4, 3, 2), 3 / 4)


def test_words_around_the_list_count_as_one_unusable_entry():
    assert parse_choice("I choose [2, 1], because", 4, 3) == Choice((2, 1), 2 / 3)


def test_a_list_inside_unfinished_thinking_is_no_choice():
    # The reference accepted it.
    assert parse_choice("<think> perhaps [1]", 4, 3) == Choice((), 0.0)


def test_a_list_inside_finished_thinking_is_not_the_choice():
    assert parse_choice("<think> perhaps [1] </think> [2]", 4, 3) == Choice((2,), 1.0)


def test_entries_that_are_no_numbers_are_left_out():
    assert parse_choice("[one, 2]", 4, 3) == Choice((2,), 1 / 2)
    assert parse_choice('["1"]', 4, 3) == parse_choice("[]", 4, 3) == parse_choice("none", 4, 3) == Choice((), 0.0)
    assert parse_choice("[²]", 4, 3) == parse_choice("[" + "9" * 5000 + "]", 4, 3) == Choice((), 0.0)


def test_of_several_lists_the_first_counts():
    assert parse_choice("[2] [1]", 4, 3).numbers == (2,)


PIECES = st.sampled_from(
    ["[", "]", ",", " ", "1", "2", "4", "99", "-", "²", "<think>", "</think>", "a", "\n", "[1, 2]"]
)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)), st.integers(1, 30), st.integers(1, 8))
def test_any_reply_is_a_choice_of_distinct_shown_items_within_the_limit(text, shown, limit):
    choice = parse_choice(text, shown, limit)
    assert len(set(choice.numbers)) == len(choice.numbers) <= limit
    assert all(1 <= number <= shown for number in choice.numbers)
    assert (choice.form > 0) == bool(choice.numbers) and choice.form <= 1


# rerank_retriever


def test_the_reranker_shows_what_was_found_and_takes_what_is_chosen():
    episode, asked = played(rerank(candidates=3, keep=2), "[2, 1]")
    shown = "1. the red cat eats fish\n2. one red fish\n3. the cat sleeps"
    assert asked == [f"2|red cat fish|{shown}"]
    assert ids(episode) == ["d", "b"]
    assert episode.checks == {"rerank": [1.0]}
    assert [turn.step for turn in episode.turns] == ["rerank"]


def test_found_items_can_be_shown_in_the_order_of_the_bank():
    episode, (asked,) = played(rerank(candidates=2, order="bank"), "[1]")
    assert asked.endswith("1. the red cat eats fish\n2. one red fish")
    episode, (asked,) = played(rerank(candidates=2, order="bank"), "[1]", items=ITEMS[::-1])
    assert asked.endswith("1. one red fish\n2. the red cat eats fish")
    assert ids(episode) == ["d"]


def test_a_malformed_choice_retrieves_nothing_unless_the_search_stands_in():
    episode, _ = played(rerank(), "the first")
    assert (ids(episode), episode.checks) == ([], {"rerank": [0.0]})
    episode, _ = played(rerank(keep=2, fallback="search"), "the first")
    assert (ids(episode), episode.checks) == (["b", "d"], {"rerank": [0.0]})


def test_nothing_is_asked_where_nothing_was_found():
    episode, asked = played(rerank(), "[1]", items=())
    assert (ids(episode), asked, episode.checks) == ([], [], {})

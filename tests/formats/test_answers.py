"""The answers from retrieved memories: what is shown to the model, and what becomes of its reply."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.dialogue import Agent, Dialogue
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.modules.answer import ANSWER_PROMPT, DIRECT_PROMPT, AnswerModule, AnswerOptions, render_memories
from memfactory.modules.citing_answer import Cited, CitingAnswer, CitingAnswerOptions, parse_cited
from memfactory.play import Sampler, play
from memfactory.registry import Options
from memfactory.text import after_marker
from memfactory.types import MemoryItem, Task, Utterance
from word_codec import NoCodec

PROMPT = "{question}|{memory}"
ITEMS = (
    MemoryItem("m7", "", "Ann has a cat", sources=("D1:1", "D1:2"), created_at="May"),
    MemoryItem("m9", "cat", "his name is Tom", created_at="May", updated_at="June", sources=("D9:9",)),
)
CONVERSATION = (Utterance("Ann", "I have a cat.", "D1:1", "May 8"), Utterance("Bob", "Nice!", "D1:2"))


class Answering(Agent):
    """Answers from the task's memory."""

    def dialogue(self, episode: Episode) -> Dialogue:
        yield from self.modules["answerer"].play(episode, episode.task.memory)


def played(module, reply: str, items: Sequence[MemoryItem] = ITEMS) -> tuple[Episode, str]:
    """The episode after the answer, and the prompt that was asked."""
    engine = ScriptedEngine(lambda messages, sampling: reply)
    episode = Episode(Task("t", "Which cat?", ("Tom",), memory=tuple(items), conversation=CONVERSATION))
    list(play(Sampler(Answering(Options(), {"answerer": module}), {"policy": engine}), [episode]))
    ((messages, _),) = engine.requests
    return episode, messages[-1].content


def answer(**options) -> AnswerModule:
    values = {"prompt": PROMPT, "answer_form": "marker"} | options
    return AnswerModule(AnswerOptions.model_validate(values), NoCodec())


def citing(**options) -> CitingAnswer:
    return CitingAnswer(CitingAnswerOptions.model_validate({"prompt": PROMPT} | options), NoCodec())


# answer


def test_the_answer_is_the_first_line_after_the_last_marker():
    said = "- Ann has a cat\n**Answer:** Max\nNo:\n**Answer:** Tom \nthe cat"
    episode, prompt = played(answer(), said)
    assert prompt == "Which cat?|- May: Ann has a cat\n- June: cat: his name is Tom"
    assert (episode.answer, episode.checks) == ("Tom", {"answer": [1.0]})


@pytest.mark.parametrize("said", ["Tom", "**Answer:**", "**Answer:** \n ", "<think> **Answer:** Tom", ""])
def test_without_words_after_a_marker_there_is_no_answer(said):
    episode, _ = played(answer(), said)
    assert (episode.answer, episode.checks) == (None, {"answer": [0.0]})


def test_a_marker_in_finished_thinking_does_not_count():
    assert after_marker("<think>**Answer:** Max</think>**Answer:** Tom") == "Tom"
    assert after_marker("<think>**Answer:** Max</think> Tom") is None


def test_each_namespace_has_a_block_of_its_own_and_a_joint_memory_none():
    ann, bob = MemoryItem("1", "", "x", namespace="Ann"), MemoryItem("2", "", "y", namespace="Bob")
    last, all_of = MemoryItem("3", "", "z", namespace="Ann"), MemoryItem("4", "", "w")
    assert render_memories([ann, bob, last]) == "Memories of Ann:\n- x\n- z\n\nMemories of Bob:\n- y"
    assert render_memories([ann, all_of]) == "- w\n\nMemories of Ann:\n- x"
    assert render_memories([all_of]) == "- w"
    assert render_memories([]) == "(nothing)"


def test_without_distillation_the_default_prompt_does_not_ask_for_it():
    assert AnswerOptions(distill=False).prompt == DIRECT_PROMPT
    assert AnswerOptions().prompt == ANSWER_PROMPT
    assert AnswerOptions(distill=False, prompt="{memory}").prompt == "{memory}"


# citing_answer


def test_the_citing_answer_names_the_items_that_it_cites():
    episode, prompt = played(citing(), "Tom [1, 0]")
    assert prompt == "Which cat?|[0] May: Ann has a cat\n[1] June: cat: his name is Tom"
    assert (episode.answer, episode.citations, episode.checks) == ("Tom", ("m9", "m7"), {"answer": [1.0]})


def test_an_answer_that_no_memory_helps_cites_nothing():
    episode, _ = played(citing(), "I do not know. [NO_CITE]")
    assert (episode.answer, episode.citations) == ("I do not know.", ())
    assert episode.checks == {"answer": [1.0]}


@pytest.mark.parametrize("said", ["Tom", "Tom [x]", "Tom []", "Tom [7]", "Tom [0, 1", "Tom [0] indeed"])
def test_a_malformed_citation_keeps_the_answer_and_is_unknown(said):
    episode, _ = played(citing(), said)
    assert episode.answer is not None and episode.answer.startswith("Tom")
    assert (episode.citations, episode.checks) == (None, {"answer": [0.0]})


def test_citations_that_come_twice_or_were_not_shown_are_left_out():
    # The reference counted [1, 1, 1, ...] as so many citations.
    assert parse_cited("Tom [1, 1, 0, 5]", 2) == Cited("Tom", (1, 0), 2 / 4)


def test_a_citation_without_an_answer_is_no_answer():
    assert parse_cited("[0]", 2) == parse_cited("", 2) == parse_cited("<think> Tom [0]", 2) == Cited(None, None, 0.0)


def test_the_words_that_a_memory_comes_from_can_stand_below_it():
    _, prompt = played(citing(sources=True), "Tom [0]")
    quoted = "    Ann: [May 8] I have a cat.\n    Bob: Nice!"
    assert prompt == f"Which cat?|[0] May: Ann has a cat\n{quoted}\n[1] June: cat: his name is Tom"


PIECES = st.sampled_from(
    [
        "[",
        "]",
        ",",
        " ",
        "0",
        "1",
        "9",
        "-",
        "²",
        "<think>",
        "</think>",
        "Tom",
        "\n",
        "**Answer:**",
        "[0, 1]",
        "NO_CITE",
    ]
)
REPLIES = st.one_of(st.text(), st.lists(PIECES).map("".join))


@given(REPLIES, st.integers(0, 8))
def test_any_reply_is_an_answer_with_distinct_shown_citations_or_none(text, shown):
    cited = parse_cited(text, shown)
    assert cited.answer is None or cited.answer.strip() == cited.answer != ""
    assert (cited.form > 0) == (cited.numbers is not None) and cited.form <= 1
    assert cited.numbers is None or len(set(cited.numbers)) == len(cited.numbers)
    assert all(0 <= number < shown for number in cited.numbers or ())


@given(REPLIES)
def test_any_reply_is_one_line_of_an_answer_or_none(text):
    said = after_marker(text)
    assert said is None or (said.strip() == said != "" and len(said.splitlines()) == 1)

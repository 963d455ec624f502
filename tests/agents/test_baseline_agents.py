"""The baselines of any table: the whole conversation, what was said as memory, the question alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from memfactory.build import build_agent
from memfactory.config import load_config
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.play import PlaySettings, Sampler, play
from memfactory.types import MemoryItem, Reading, Task, Utterance

CONFIGS = Path(__file__).parents[2] / "configs"
CONVERSATION = (
    Utterance("Ann", "I bought a red boat.", "D1:1", "May 1", "1"),
    Utterance("Bob", "What is its name?", "D1:2", "May 1", "1"),
    Utterance("Ann", "It is called Rosa.", "D1:3", None, "1"),
    Utterance("Bob", "I sold my car.", "D2:1", "June 2", "2"),
)
MEMORY = (MemoryItem("m1", "", "Bob had a car", created_at="April"),)


class Words:
    """A codec whose tokens are words with the blanks before them."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        spans, start = [], 0
        for index, character in enumerate(text):
            if character in " \n" and index > start and text[index - 1] not in " \n":
                spans.append((start, index))
                start = index
        return [*spans, (start, len(text))] if text else []


def asked(words: list[str], memory=(), codec=None) -> tuple[Episode, str]:
    """The episode of an agent that is written so, and the prompt it asks the question with."""
    config = load_config(CONFIGS / "quickstart.yaml", words).config
    engine = ScriptedEngine(lambda messages, sampling: "**Answer:** Rosa")
    task = Task(
        "t", "What is the boat called?", ("Rosa",), memory=memory, conversation=CONVERSATION, evidence=("D1:3",)
    )
    (episode,) = play(
        Sampler(build_agent(config.agent, codec or Words()), {"policy": engine}),
        [Episode(task)],
        PlaySettings(frozen=True),
    )
    ((messages, _),) = engine.requests
    return episode, messages[-1].content


def test_the_whole_conversation_stands_in_the_prompt():
    episode, prompt = asked(["agent={name: full_context, prompt: '{question}|{conversation}'}"], memory=MEMORY)
    said = "Ann: [May 1] I bought a red boat.\nBob: [May 1] What is its name?\nAnn: It is called Rosa.\n"
    assert prompt == f"What is the boat called?|- April: Bob had a car\n\n{said}Bob: [June 2] I sold my car."
    assert (episode.answer, episode.bank, episode.checks) == ("Rosa", None, {"answer": [1.0]})


@pytest.mark.parametrize(
    ("keep", "shown"),
    [("last", "I sold my car."), ("first", "Ann: [May 1] I"), ("center", "Ann: [May my car.")],
)
def test_a_conversation_that_is_too_long_loses_what_is_said(keep, shown):
    words = [f"agent={{name: full_context, prompt: '{{conversation}}', context_tokens: 4, keep: {keep}}}"]
    assert asked(words)[1].split() == shown.split()


def test_what_was_said_is_found_word_for_word():
    words = ["agent=naive_rag", "agent.modules.retriever.k=2", "agent.modules.answerer.prompt='{memory}'"]
    episode, prompt = asked(words)
    # Of the question's words the first turn has "boat" and the third "called"; the others have none that says much.
    assert {source for item in episode.retrieved for source in item.sources} == {"D1:1", "D1:3"}
    assert {*prompt.splitlines()} == {"- May 1: Ann: I bought a red boat.", "- Ann: It is called Rosa."}
    assert episode.answer == "Rosa"


def test_baselines_say_how_much_they_read_of_what_was_said():
    said = "Ann: [May 1] I bought a red boat.\nBob: [May 1] What is its name?\nAnn: It is called Rosa.\n"
    whole = Reading(len(Words().offsets(f"{said}Bob: [June 2] I sold my car.")))
    read = {agent: asked([f"agent={agent}"])[0].reading for agent in ("full_context", "naive_rag", "no_memory")}
    assert read == {"full_context": whole, "naive_rag": whole, "no_memory": None}


def test_several_turns_of_one_session_can_make_one_item():
    words = ["agent={name: naive_rag, turns_per_item: 2}", "agent.modules.answerer={name: answer, prompt: '{memory}'}"]
    episode, _ = asked(words, memory=MEMORY)
    assert episode.bank is not None
    said = [(item.value, item.sources, item.created_at) for item in episode.bank.list()]
    assert said == [
        ("Bob had a car", (), "April"),
        ("Ann: I bought a red boat.\nBob: What is its name?", ("D1:1", "D1:2"), "May 1"),
        ("Ann: It is called Rosa.", ("D1:3",), None),
        ("Bob: I sold my car.", ("D2:1",), "June 2"),
    ]


def test_the_question_alone_is_asked_without_a_memory():
    episode, prompt = asked(["agent=no_memory"], memory=MEMORY)
    assert "What is the boat called?" in prompt
    assert not any(turn.text in prompt for turn in CONVERSATION) and "Bob had a car" not in prompt
    assert (episode.answer, episode.retrieved) == ("Rosa", ())

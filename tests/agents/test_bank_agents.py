"""Memory-R1 and RMM from the conversation to the answer: what is read when, what is shared, what each attempt owns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from memfactory.agents.bank_agent import BankAgentOptions
from memfactory.agents.memory_r1 import MemoryR1
from memfactory.build import build_agent
from memfactory.config import load_config
from memfactory.dialogue import Agent
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.errors import EngineError
from memfactory.memory.bank import BankSource
from memfactory.play import PlaySettings, Sampler, play
from memfactory.seeds import stream_seed
from memfactory.types import MemoryItem, Message, Reward, Sampling, Task, Turn, Utterance
from word_codec import WordCodec

CONFIGS = Path(__file__).parents[2] / "configs"
TALK = (
    Utterance("Ada", "I live in Rome.", "D1:1", "8 May", "1"),
    Utterance("Bob", "I keep bees.", "D1:2", "8 May", "1"),
    Utterance("Ada", "I moved to Oslo.", "D2:1", "9 May", "2"),
)
OLD = MemoryItem("a", "", "Ada likes tea.")
FROZEN = {"interface": "inference"}


def says(messages: Sequence[Message], sampling: Sampling) -> str:
    """Notes every sentence in the speaker's name, takes up all that is new, chooses the last item, answers with it."""
    prompt = messages[-1].content
    if "memory_list" in prompt:
        spoken = re.findall(r"^(\w+): (?:\[[^]]*\] )?I (.*)$", prompt, re.MULTILINE)
        return json.dumps({"memory_list": [{"key": "", "value": f"{name} said: {text}"} for name, text in spoken]})
    if "extracted_memories" in prompt:
        speaker = re.search(r"tells about (\w+),", prompt).group(1)
        spoken = re.findall(rf"^\[(\d+)\] {speaker}: (?:\[[^]]*\] )?I (.*)$", prompt, re.MULTILINE)
        found = [{"summary": f"{speaker} said: {text}", "reference": [int(place)]} for place, text in spoken]
        return json.dumps({"extracted_memories": found}) if found else "NO_TRAIT"
    if "operations" in prompt:
        old, new = (re.findall(r"^(\d+)\.", part, re.MULTILINE) for part in prompt.split("</memory>"))
        entries = [{"id": int(id), "op": "NONE"} for id in old] + [{"id": int(id), "op": "ADD"} for id in new]
        return json.dumps({"operations": entries})
    if "history_summaries" in prompt:
        return "Add()"
    if "Choose the memories" in prompt:
        return f"[{re.findall(r'^([0-9]+)[.]', prompt, re.MULTILINE)[-1]}]"
    memory = re.search(r"<memory>\n(.*)\n</memory>", prompt, re.DOTALL).group(1).splitlines()
    return f"{memory[0]} [0]" if "NO_CITE" in prompt else f"{memory[0]}\n**Answer:** {memory[0]}"


def agent_of(tmp_path: Path, text: str) -> Agent:
    """The agent of a config that says `text`, put together from the shipped parts."""
    path = tmp_path / "configs" / "run.yaml"
    path.parent.mkdir(exist_ok=True)
    for part in (CONFIGS / "agents").glob("memory_r*.yaml"):
        (path.parent / "agents").mkdir(exist_ok=True)
        (path.parent / "agents" / part.name).write_text(part.read_text())
    helper = "{kind: openai, model: helper, base_url: 'http://localhost:1'}"
    path.write_text(f"model: tiny\nenv: memory_bank\nagent: {text}\nengines: {{helper: {helper}}}\n")
    config = load_config(path).config
    return build_agent(config.agent, WordCodec(), BankSource(config.memory))


def task(question: str = "Where does Ada live?", **values: object) -> Task:
    return Task(**{"id": question, "question": question, "answers": ("Oslo",), "conversation": TALK, **values})


def played(agent: Agent, episodes: Sequence[Episode], engine: ScriptedEngine, **options) -> list[Episode]:
    done = list(play(Sampler(agent, {"policy": engine}), episodes, **options))
    return sorted(done, key=lambda episode: (episode.task.id, episode.index))


def group(size: int = 3, **values: object) -> list[Episode]:
    return [Episode(task(**values), index=member, seed=7) for member in range(size)]


def asked(engine: ScriptedEngine, words: str) -> int:
    return sum(words in messages[-1].content for messages, _ in engine.requests)


def steps(episode: Episode) -> list[str]:
    return [turn.step for turn in episode.turns]


def values(episode: Episode) -> list[str]:
    return [item.text for item in episode.bank.list()]


ALL = ["Ada likes tea.", "Ada said: live in Rome.", "Bob said: keep bees.", "Ada said: moved to Oslo."]


# Memory-R1


def test_memory_r1_reads_session_after_session_then_answers_from_what_is_found(tmp_path):
    engine = ScriptedEngine(says)
    (done,) = played(agent_of(tmp_path, "memory_r1"), [Episode(task(memory=(OLD,)))], engine)
    assert steps(done) == ["extract", "update", "extract", "update", "answer"]
    # The manager is in training; the answer agent is frozen.
    assert [turn.trainable for turn in done.turns] == [True] * 4 + [False]
    assert values(done) == ALL
    assert [item.sources for item in done.bank.list()] == [(), ("D1:1",), ("D1:2",), ("D2:1",)]
    assert done.checks == {"extract": [1.0, 1.0], "update": [1.0, 1.0], "answer": [1.0]}
    assert done.answer is not None and done.answer.removeprefix("- ") in done.memory
    assert done.memory.splitlines()[:2] == ["- Ada likes tea.", "- 8 May: Ada said: live in Rome."]


@pytest.mark.parametrize("frozen", [False, True])
def test_the_memory_is_shown_as_it_grows_also_in_a_shared_bank(tmp_path, frozen):
    memories = []

    def on_turn(episode: Episode, turn: Turn) -> None:
        memories.append(len(episode.memory.splitlines()))

    sampler = Sampler(agent_of(tmp_path, "memory_r1"), {"policy": ScriptedEngine(says)})
    list(play(sampler, [Episode(task())], PlaySettings(frozen=frozen), on_turn=on_turn))
    # Nothing yet (one line says so), two entries, then three; the answer comes last.
    assert memories == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({}, [["D1:1", "D1:2"], ["D2:1"]]),
        ({"read": "all", "turns": 1}, [["D1:1", "D1:2", "D2:1"]]),
        ({"read": "turns"}, [["D1:1"], ["D1:2"], ["D2:1"]]),
        # A part never runs over the end of a session.
        ({"read": "turns", "turns": 2}, [["D1:1", "D1:2"], ["D2:1"]]),
    ],
)
def test_the_conversation_is_read_in_chunks(options, chunks):
    agent = MemoryR1(BankAgentOptions.model_validate(options), {})
    assert [[turn.id for turn in chunk] for chunk in agent.chunks(TALK)] == chunks
    assert list(agent.chunks(())) == []


def test_every_attempt_in_training_builds_a_bank_of_its_own(tmp_path):
    def by_attempt(messages: Sequence[Message], sampling: Sampling) -> str:
        return says(messages, sampling) if sampling.seed in kept else '{"memory_list": []}'

    first = [stream_seed(7, 1, turn) for turn in range(2)]
    kept = set(first)
    engine = ScriptedEngine(by_attempt)
    done = played(agent_of(tmp_path, "memory_r1"), group(memory=(OLD,)), engine)
    # The second attempt keeps the first session, the others nothing.
    assert [values(episode) for episode in done] == [ALL[:1], ALL[:3], ALL[:1]]
    assert asked(engine, "memory_list") == 3 * 2


def test_what_one_attempt_does_to_its_bank_no_other_sees(tmp_path):
    one, other = played(agent_of(tmp_path, "memory_r1"), group(2, memory=(OLD,)), ScriptedEngine(says))
    one.bank.delete("a")
    assert values(one) == ALL[1:] and values(other) == ALL


def test_a_frozen_extractor_is_asked_once_for_a_group_that_trains_its_updater(tmp_path):
    engine = ScriptedEngine(says)
    agent = agent_of(tmp_path, "{name: memory_r1, modules: {extractor: {interface: inference}}}")
    done = played(agent, group(memory=(OLD,)), engine)
    assert (asked(engine, "memory_list"), asked(engine, '"operations"')) == (2, 3 * 2)
    assert [steps(episode) for episode in done] == [["update", "update", "answer"]] * 3
    assert [values(episode) for episode in done] == [ALL] * 3
    assert done[0].checks["extract"] == [1.0, 1.0]


def test_a_frozen_manager_builds_the_bank_of_a_conversation_once_for_a_group(tmp_path):
    engine = ScriptedEngine(says)
    second = "{name: memory_r1, modules: {extractor: %s, updater: %s, answerer: {interface: generate}}}"
    frozen = "{interface: inference}"
    done = played(agent_of(tmp_path, second % (frozen, frozen)), group(), engine)
    assert (asked(engine, "memory_list"), asked(engine, '"operations"')) == (2, 2)
    assert [(steps(episode), episode.turns[0].trainable) for episode in done] == [(["answer"], True)] * 3
    done[0].bank.delete("m1")
    assert [values(episode) for episode in done[1:]] == [ALL[1:]] * 2
    # What the shared building was marked counts for each.
    assert done[1].checks["update"] == [1.0, 1.0]


def test_evaluation_builds_one_bank_for_all_questions_of_a_conversation_and_attempt_number(tmp_path):
    engine = ScriptedEngine(says, tokens=False)
    questions = ["Where does Ada live?", "What does Bob keep?", "Where did Ada live?"]
    episodes = [Episode(task(question), member, seed) for seed, question in enumerate(questions) for member in (0, 1)]
    other = Episode(task("Where is Cy?", conversation=(Utterance("Cy", "I live in Bonn.", "D1:1"),)), 0, 9)
    done = played(agent_of(tmp_path, "memory_r1"), [*episodes, other], engine, settings=PlaySettings(frozen=True))
    # Two sessions for each of the two numbers, and the other conversation's one.
    assert asked(engine, "memory_list") == 2 * 2 + 1
    assert [asked(engine, words) for words in ("Ada live?", "Bob keep?", "Cy?")] == [2 * 2, 2, 1]
    assert sum(values(episode) == ALL[1:] for episode in done) == 6


def test_banks_of_other_memories_or_related_items_are_not_shared(tmp_path):
    for different in ({"memory": (OLD,)}, {"related": ()}, {"conversation": TALK[:2]}):
        engine = ScriptedEngine(says)
        episodes = [Episode(task("a")), Episode(task("b", **different))]
        played(agent_of(tmp_path, "memory_r1"), episodes, engine, settings=PlaySettings(frozen=True))
        assert asked(engine, "memory_list") > 2


def test_the_building_that_is_shared_knows_neither_question_nor_gold(tmp_path):
    agent = agent_of(tmp_path, "memory_r1")
    whole = task("Where?", evidence=("D2:1",), context="context", meta={"category": 2})
    seen = next(agent.dialogue(Episode(whole, frozen=True))).task
    assert (seen.answers, seen.evidence, seen.context, dict(seen.meta)) == ((), (), "", {})
    assert "Where?" not in (seen.question, seen.id) and seen.conversation == TALK


def test_without_a_conversation_nothing_is_built_and_the_given_memory_answers(tmp_path):
    for frozen in (False, True):
        engine = ScriptedEngine(says)
        (done,) = played(agent_of(tmp_path, "memory_r1"), [Episode(task(conversation=(), memory=(OLD,)))], engine,
                         settings=PlaySettings(frozen=frozen))  # fmt: skip
        assert (steps(done), done.answer) == (["answer"], "- Ada likes tea.")


def test_the_rollout_interface_asks_for_the_reward_at_the_modules_end(tmp_path):
    asked_with = []

    def score(episodes: Sequence[Episode]) -> list[Reward]:
        asked_with.extend((steps(done)[-1], len(done.bank)) for done in episodes)
        return [Reward(float(len(asked_with)))]

    text = "{name: memory_r1, modules: {extractor: {interface: rollout}, updater: {interface: rollout}}}"
    (done,) = played(agent_of(tmp_path, text), [Episode(task())], ScriptedEngine(says), score=score)
    assert asked_with == [("extract", 0), ("update", 2), ("extract", 2), ("update", 3)]
    # The last part's reward stands.
    assert done.step_rewards == {"extract": Reward(3.0), "update": Reward(4.0)}


def test_malformed_replies_end_in_an_attempt_without_an_answer(tmp_path):
    for said in ("", "7", "[1]", '"memory_list"', '{"memory_list": 3}', "<think>", "[[[[", "{}"):
        for agent in ("memory_r1", "memory_rmm"):
            (done,) = played(agent_of(tmp_path, agent), [Episode(task(memory=(OLD,)))],
                             ScriptedEngine(lambda messages, sampling, said=said: said))  # fmt: skip
            assert values(done) == ["Ada likes tea."] and done.failure is None
            assert set(done.checks["extract"]) == {0.0}


def test_a_helper_that_fails_while_a_shared_bank_is_built_fails_all_who_wait_for_it(tmp_path):
    def down(messages: Sequence[Message], sampling: Sampling) -> str:
        raise EngineError("the endpoint is down")

    helped = "{name: memory_rmm, modules: {extractor: {interface: inference, engine: helper}}}"
    engines = {"policy": ScriptedEngine(says), "helper": ScriptedEngine(down)}
    done = list(play(Sampler(agent_of(tmp_path, helped), engines), group(2)))
    assert [episode.failure for episode in done] == ["the endpoint is down"] * 2


def test_a_large_bank_is_shown_in_part(tmp_path):
    items = tuple(MemoryItem(f"i{n}", "", f"Fact {n}.") for n in range(203))
    (done,) = played(agent_of(tmp_path, "memory_r1"), [Episode(task(conversation=(), memory=items))],
                     ScriptedEngine(says))  # fmt: skip
    assert done.memory.splitlines()[-2:] == ["- Fact 199.", "- (3 more)"]


# RMM


def test_rmm_trains_the_reranker_over_a_bank_that_its_group_shares(tmp_path):
    engine = ScriptedEngine(says)
    done = played(agent_of(tmp_path, "memory_rmm"), group(), engine)
    # Ada and Bob in the first session, Ada in the second.
    assert asked(engine, "extracted_memories") == 3
    assert [steps(episode) for episode in done] == [["rerank", "answer"]] * 3
    assert [[turn.trainable for turn in episode.turns] for episode in done] == [[True, False]] * 3
    for episode in done:
        assert values(episode) == ALL[1:]
        assert episode.citations == (episode.retrieved[0].id,) and "said" in (episode.answer or "")


# Exchange by YAML


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({}, ["NaiveExtractor", "NaiveUpdater", "NaiveRetriever", "AnswerModule"]),
        ({"retriever": "rerank_retriever"}, ["NaiveExtractor", "NaiveUpdater", "RerankRetriever", "AnswerModule"]),
        ({"extractor": "topic_extractor", "updater": "topic_updater", "answerer": "citing_answer"},
         ["TopicExtractor", "TopicUpdater", "NaiveRetriever", "CitingAnswer"]),
    ],
)  # fmt: skip
def test_a_memory_r1_with_modules_of_rmm_is_one_line_of_yaml(tmp_path, modules: Mapping[str, str], expected):
    line = json.dumps({"name": "memory_r1", "modules": modules}) if modules else "memory_r1"
    agent = agent_of(tmp_path, line)
    assert [type(module).__name__ for module in agent.modules.values()] == expected
    (done,) = played(agent, [Episode(task(memory=(OLD,)))], ScriptedEngine(says))
    assert done.answer and set(values(done)) == set(ALL)

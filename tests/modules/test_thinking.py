"""Thinking in every module: it never becomes memory, choice or answer, and is counted where it never ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from memfactory.build import build_agent
from memfactory.config import load_config
from memfactory.dialogue import Agent, Ask, Asking, Dialogue
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.evaluation.answer_rows import answer_row
from memfactory.evaluation.collector import SampleCollector
from memfactory.evaluation.records import RecordFile, read_records
from memfactory.evaluation.results import DatasetResult, MetricResult
from memfactory.evaluation.samples import SampleRecord, record
from memfactory.evaluation.tables import detail_table
from memfactory.memory.bank import BankSource
from memfactory.play import PlaySettings, Sampler, play
from memfactory.registry import Options
from memfactory.roles import AnswerModuleOptions, ParsedAnswer, Reader
from memfactory.trainers.online import measured
from memfactory.trainers.rollout_metrics import gathered_metrics
from memfactory.types import (
    Group,
    MemoryItem,
    Message,
    Reply,
    Reward,
    Sampling,
    Task,
    Tokens,
    Trajectory,
    Turn,
    Utterance,
)
from word_codec import WordCodec

CONFIGS = Path(__file__).parents[2] / "configs"
AGENTS = ["memory_agent", "memory_r1", "memory_rmm", "full_context", "naive_rag", "no_memory"]
OLD = MemoryItem("a", "", "Ada likes tea.")
TASK = Task(
    "q", "Where does Ada live?", ("Oslo",), memory=(OLD,),
    conversation=(Utterance("Ada", "I moved to Oslo.", "D1:1", "8 May", "1"),),
)  # fmt: skip


def agent_of(name: str, tmp_path: Path) -> Agent:
    (tmp_path / "run.yaml").write_text(f"model: tiny\nenv: memory_bank\nagent: {name}\n")
    config = load_config(tmp_path / "run.yaml").config
    return build_agent(config.agent, WordCodec(), BankSource(config.memory))


def reply_to(messages: Sequence[Message], town: str) -> str:
    """A well-formed reply to any prompt of the shipped modules, which says that Ada lives in `town`."""
    prompt = messages[-1].content
    if "memory_list" in prompt:
        return json.dumps({"memory_list": [{"key": "home", "value": f"Ada lives in {town}"}]})
    if "extracted_memories" in prompt:
        return json.dumps({"extracted_memories": [{"summary": f"Ada lives in {town}", "reference": [0]}]})
    if "operations" in prompt:
        return json.dumps(
            {"operations": [{"id": 1, "op": "NONE"}, {"id": 2, "op": "ADD" if town == "Oslo" else "DEL"}]}
        )
    if "history_summaries" in prompt:
        return "Add()" if town == "Oslo" else f"Merge(0, Ada lives in {town})"
    if "Choose the memories" in prompt:
        return "[2]" if town == "Oslo" else "[1]"
    if "Updated memory" in prompt:
        return f"Ada lives in {town}"
    return f"**Answer:** {town} [1]" if "NO_CITE" in prompt else f"\\boxed{{{town}}} **Answer:** {town}"


def played(name: str, tmp_path: Path, shape: str) -> Episode:
    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        return shape.format(thought=reply_to(messages, "Mars"), said=reply_to(messages, "Oslo"))

    sampler = Sampler(agent_of(name, tmp_path), {"policy": ScriptedEngine(reply)})
    (done,) = play(sampler, [Episode(TASK)], PlaySettings(frozen=True))
    return done


def kept(episode: Episode) -> tuple[object, ...]:
    """All that an episode knows and answers."""
    items = None if episode.bank is None else tuple(item.text for item in episode.bank.list())
    retrieved = tuple(item.text for item in episode.retrieved)
    return episode.memory, items, retrieved, episode.answer, episode.checks


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    "shape",
    [
        "<think>\n{thought}\n</think>\n\n{said}",
        "{thought}\n</think>\n\n{said}",
        "<think>{thought}</think><think>{thought}</think>{said}",
    ],
    ids=["opened by the model", "opened by an endpoint's template", "twice"],
)
def test_finished_thinking_changes_nothing(agent: str, shape: str, tmp_path: Path) -> None:
    assert kept(played(agent, tmp_path, shape)) == kept(played(agent, tmp_path, "{said}"))


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("shape", ["<think>\n{thought}", "<think>{thought}</think>{said}<think>{thought}"])
def test_unfinished_thinking_leaves_the_memory_and_gives_no_answer(agent: str, shape: str, tmp_path: Path) -> None:
    done = played(agent, tmp_path, shape)
    assert done.answer is None
    if done.bank is not None and agent != "naive_rag":
        assert [item.text for item in done.bank.list()] == ["Ada likes tea."]
    if agent == "memory_agent":
        assert done.memory == "No previous memory"
    unfinished = record("", done, {}).unfinished_thinking
    # Reading a session is shared work, and no turn of the sample's own; an answer row has every turn.
    assert unfinished == len(done.turns) > 0
    assert answer_row(done, None)["unfinished_thinking"] >= unfinished


@pytest.mark.parametrize(
    ("text", "answer"),
    [("<think>\\boxed{Mars}</think>\nOslo", "Oslo"), ("<think>\\boxed{Mars}", None), ("Oslo", "Oslo")],
)
def test_a_module_of_ones_own_answers_without_thinking(text: str, answer: str | None) -> None:
    class Guess(Reader[AnswerModuleOptions]):
        steps = ("guess",)

        def dialogue(self, episode: Episode) -> Asking[ParsedAnswer]:
            reply = yield Ask("guess", (Message("user", episode.task.question),), 8)
            return self.answer(reply.text)

    class Guesser(Agent):
        slots = MappingProxyType({"reader": "guess"})

        def dialogue(self, episode: Episode) -> Dialogue[None]:
            yield from self.modules["reader"].play(episode)

    agent = Guesser(Options(), {"reader": Guess(AnswerModuleOptions(answer_form="plain"), WordCodec())})
    sampler = Sampler(agent, {"policy": ScriptedEngine(lambda messages, sampling: text)})
    (done,) = play(sampler, [Episode(TASK)], PlaySettings(frozen=True))
    assert done.answer == answer


# Counting


def turn(text: str) -> Turn:
    return Turn("answer", (Message("user", "?"),), Reply(text, "length", Tokens((1,), (2,), (-1.0,))), True)


def episode(index: int, *texts: str) -> Episode:
    return Episode(TASK, index, turns=[turn(text) for text in texts], changed_times=[0] * len(texts), answer="Oslo")


@pytest.mark.parametrize(
    ("texts", "share"),
    # One of four never ended; all ended; none thinks.
    [
        (("<think>a", "<think>a</think>b", "c", "d"), 0.25),
        (("<think>a</think>b", "c", "c", "d"), 0.0),
        (("a", "b", "c", "d"), None),
    ],
)
def test_training_counts_replies_whose_thinking_never_ended(texts: tuple[str, ...], share: float | None) -> None:
    trajectories = tuple(Trajectory(n, (turn(text),), None, Reward(0.0)) for n, text in enumerate(texts))
    assert gathered_metrics([Group(TASK, trajectories)]).get("unfinished_thinking") == share
    episodes = [episode(0, *texts)]
    assert measured(episodes, [Reward(0.0)]).get("unfinished_thinking") == share


def test_an_evaluation_counts_them_in_records_results_and_tables(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with RecordFile(path, "facts") as records:
        collector = SampleCollector({}, records)
        collector.add([episode(0, "<think>a", "<think>b</think>c"), episode(1, "plain")])
        result = collector.result([TASK], 2, 0.0)
    # Of three replies one never ended.
    assert result.unfinished_thinking == pytest.approx(1 / 3)
    assert type(result).from_json(result.to_json(), {}) == result
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("unfinished_thinking") for line in lines] == [1, None]
    assert [sample.unfinished_thinking for sample in read_records(path)] == [1, None]
    assert all(json.loads(json.dumps(SampleRecord.from_json(line).to_json())) == line for line in lines)


def test_the_table_shows_them_only_where_a_reply_thinks() -> None:
    def result(*texts: str) -> DatasetResult:
        collector = SampleCollector({}, None)
        collector.add([episode(0, *texts)])
        return replace(collector.result([TASK], 1, 0.0), metrics={"em": MetricResult(1.0, None, 1, 1, 0)})

    thinking, plain = {"facts": result("<think>a", "b")}, {"facts": result("a", "b")}
    table = detail_table({"one": thinking, "other": plain})
    assert table.header[-1] == "unfinished thinking"
    assert [row[-1] for row in table.rows] == ["50.0%", "–"]
    assert "unfinished thinking" not in detail_table({"other": plain}).header

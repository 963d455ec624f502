"""Whatever a model says, every memory agent plays on, every attempt is scored, and every bank keeps its laws."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence

import pytest

from memfactory.build import build_rewards
from memfactory.config.grpo import GrpoOptions
from memfactory.dialogue import Agent, LearningModule
from memfactory.engines.scripted import ScriptedEngine
from memfactory.envs.base import Environment
from memfactory.episode import Episode
from memfactory.errors import EngineError
from memfactory.evaluation.samples import SampleRecord, record
from memfactory.memory.bank import BankSource
from memfactory.memory.options import LexicalEmbedderConfig, MemoryConfig
from memfactory.play import Sampler, play
from memfactory.policy.batch import step_advantages
from memfactory.registry import AGENTS, ENVS, MODULES
from memfactory.types import Group, MemoryItem, Message, Reply, Reward, Sampling, Task, Tokens, Trajectory, Utterance
from word_codec import WordCodec

OUTPUTS = 10_000
"""Replies that each agent is played with."""
GROUP = 4
GOLD = "Rex"
TALK = tuple(
    Utterance(speaker, text, f"D{session}:{number}", time, str(session))
    for session, time in ((1, "8 May"), (2, None))
    for number, (speaker, text) in enumerate(
        (("Ada", "My dog is called Rex."), ("Bob", "I moved to Oslo."), ("Ada", "I sold the red boat.")), start=1
    )
)
KNOWN = (
    MemoryItem("m2", "pet", "Ada has a dog.", sources=("D0:1",), namespace="Ada"),
    MemoryItem("9f-7", "", "Bob lives in Rome.", created_at="1 May", namespace="Bob"),
    MemoryItem("x", "boat", "Ada has a red boat."),
)
TASKS = (
    Task("replay", "What is Ada's dog called?", (GOLD,), conversation=TALK, evidence=("D1:1", "D2:1")),
    Task(
        "tuple", "Where is Bob?", (GOLD,), memory=KNOWN, related=("x", "m2"), conversation=TALK[3:], evidence=("D0:1",)
    ),
    Task("search", "Who has a boat?", (GOLD,), memory=KNOWN, conversation=TALK[:3], evidence=("D1:3",)),
    Task("bank", "Who has a boat?", (GOLD,), memory=KNOWN, evidence=("D9:9",)),
)
REWARDS = {
    "em": 1.0,
    "f1": 0.5,
    "memory_format": 0.1,
    "evidence_recall": {"weight": 0.5, "k": 5},
    "evidence_kept": 0.5,
    "m_fail": 0,
    "compression": 0.3,
    "citations": 0.25,
}
STEPS = {"extract": {"em": 1.0, "evidence_kept": 1.0}, "rerank": {"evidence_recall": 1.0, "memory_format": 0.1}}

WORDS = (
    "Ada",
    "Bob",
    "Rex",
    "dog",
    "boat",
    "Oslo",
    "red",
    "has",
    "moved",
    "",
    " ",
    "\n",
    "é",
    "日本",
    "🐕",
    "\u2028",
    "\0",
)
JUNK = (
    None,
    True,
    -1,
    0,
    10**400,
    1.5,
    1e308,
    float("nan"),
    "",
    "7",
    "ADD",
    [],
    {},
    [[]],
    {"id": 1},
    [None, 3],
    "\ud800",
)
PIECES = (
    *'{ } [ ] " : , \\ ` ``` ```json <think> </think> memory_list operations memory id op value key -1 0 1 99 '.split(),
    *"**Answer:** [NO_CITE] NO_TRAIT Add() Merge(0, NONE ADD DEL UPDATE null NaN Infinity 1e999 ' {{ }} \\u ".split(),
    *("\ud83d", "\udc15", "\u202e", "\x00", "\x1b[31m", " ", "\n", "\r\n"),
)
GIANTS = ("9" * 5000, "[" * 3000, "{" * 3000, '{"a":' * 1200, '"' * 999, "[1], " * 500, "<think>" * 500)


class Babbler:
    """A model that says what is asked for, or something like it, or anything: the n-th reply is fixed by the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.said = 0

    def __call__(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        self.said += 1
        text = self.reply(messages[-1].content)
        return Reply(text, "length" if self.random.random() < 0.05 else "stop", Tokens((1,), (2,), (-1.0,)))

    def reply(self, prompt: str) -> str:
        draw = self.random.random()
        if draw < 0.1:
            return piece(self.random) + "".join(self.random.choices(PIECES, k=self.random.randrange(40)))
        if draw < 0.15:
            return json.dumps(self.random.choice((*JUNK, "memory_list", "operations", 5)), ensure_ascii=draw < 0.12)
        wanted = next((kind for mark, kind in KINDS.items() if mark in prompt), answer)
        if draw < 0.2:
            wanted = self.random.choice(list(KINDS.values()))
        value = wanted(self.random)
        if not isinstance(value, str):
            for _ in range(self.random.choice((0, 0, 1, 2))):
                value = spoiled(value, self.random)
            value = json.dumps(value, ensure_ascii=self.random.random() < 0.5)
        for _ in range(self.random.choice((0, 0, 1, 2, 4))):
            value = mutated(value, self.random)
        return value


def piece(chance: random.Random) -> str:
    return chance.choice(GIANTS if chance.random() < 0.01 else PIECES)


def words(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randrange(6)))


def several(chance: random.Random, most: int, make: Callable[[], object]) -> list[object]:
    return [make() for _ in range(chance.randrange(most + 1))]


def extraction(chance: random.Random) -> object:
    kinds = ("LongTermMemory", "UserMemory", "other")
    entries = several(
        chance,
        3,
        lambda: {"key": words(chance), "value": words(chance), "memory_type": chance.choice(kinds), "tags": ["x"]},
    )
    return {"memory_list": entries, "summary": words(chance)}


def operations(chance: random.Random) -> object:
    ops = ("NONE", "DEL", "ADD", "UPDATE", "delete", "noop", "MERGE")
    ids = (*range(9), "1", "2", "3", "4")
    return {
        "operations": several(
            chance, 8, lambda: {"id": chance.choice(ids), "op": chance.choice(ops), "value": words(chance)}
        )
    }


def mem0(chance: random.Random) -> object:
    events = ("NONE", "DELETE", "ADD", "UPDATE", "NOOP")
    return {
        "memory": several(
            chance, 5, lambda: {"id": str(chance.randrange(6)), "text": words(chance), "event": chance.choice(events)}
        )
    }


def topics(chance: random.Random) -> object:
    return {
        "extracted_memories": several(
            chance, 2, lambda: {"summary": words(chance), "reference": several(chance, 3, lambda: chance.randrange(5))}
        )
    }


def merges(chance: random.Random) -> str:
    lines = (
        "Add()",
        "Merge(0, Ada has a dog, Rex (old))",
        f"Merge({chance.randrange(9)}, {words(chance)})",
        "Merge(1)",
    )
    return "\n".join(chance.choices(lines, k=chance.randrange(4)))


def choice(chance: random.Random) -> str:
    return str([chance.randrange(25) for _ in range(chance.randrange(9))])


def citing(chance: random.Random) -> str:
    numbers = ", ".join(str(chance.randrange(7)) for _ in range(chance.randrange(5)))
    return f"{chance.choice((GOLD, words(chance)))} [{chance.choice((numbers, numbers, 'NO_CITE'))}]"


def answer(chance: random.Random) -> str:
    return f"- {words(chance)}\n**Answer:** {chance.choice((GOLD, words(chance)))}"


KINDS: Mapping[str, Callable[[random.Random], object]] = {
    '{"memory_list"': extraction,
    '{"operations"': operations,
    '{"memory"': mem0,
    '{"extracted_memories"': topics,
    "Merge(": merges,
    "Reply with their numbers": choice,
    "[NO_CITE]": citing,
    "**Answer:**": answer,
}
"""What each kind of prompt asks for, by words of the prompt."""


def spoiled(value: object, chance: random.Random) -> object:
    """`value` with one thing in it replaced, repeated or left out."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        draw = chance.random()
        if draw < 0.15:
            return {name: held for name, held in value.items() if name != key}
        if draw < 0.25:
            return {(name.upper() if name == key else name): held for name, held in value.items()}
        return {**value, key: spoiled(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        if chance.random() < 0.3:
            return [*value, value[place]] * chance.choice((1, 1, 40))
        return [*value[:place], spoiled(value[place], chance), *value[place + 1 :]]
    return chance.choice(JUNK)


def mutated(text: str, chance: random.Random) -> str:
    """`text` cut, doubled, wrapped, or with some characters lost or put in."""
    first, last = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
    return chance.choice(
        (
            lambda: text[:last],
            lambda: text[first:],
            lambda: text[:first] + text[last:],
            lambda: text[:last] + text[first:],
            lambda: text[:first] + piece(chance) + text[first:],
            lambda: text.replace(chance.choice('{}[]":,'), chance.choice(("", "'", "}", "]", " "))),
            lambda: re.sub("[0-9]+", lambda number: chance.choice(("0", "-1", "1e9", "9" * 5000)), text, count=2),
            lambda: f"<think>{text}</think>{text[first:]}",
            lambda: f"<think>{text}",
            lambda: f"Sure! Here it is: {text} I hope that helps.",
            lambda: f"```json\n{text}\n```",
            lambda: text + text,
        )
    )()


def environment() -> Environment:
    options = ENVS.options("memory_bank")(rewards=REWARDS, steps=STEPS)
    made: Environment = ENVS.get("memory_bank")(options, build_rewards(options.rewards, {}))
    return made


def agent(name: str, banks: BankSource, **modules: Mapping[str, object]) -> Agent:
    """The agent `name`; `modules` are options of slots, `name` among them where another module is to fill the slot."""
    filled = {}
    for slot, default in AGENTS.get(name).slots.items():
        values = {"name": default, **modules.get(slot, {})}
        module = MODULES.get(values["name"])
        options = {key: value for key, value in values.items() if key != "name"}
        filled[slot] = module(MODULES.options(values["name"]).model_validate(options), WordCodec())
    return AGENTS.get(name)(AGENTS.options(name)(), filled, banks)


AGENTS_PLAYED = {
    "memory_r1": ("memory_r1", {"answerer": {"interface": "inference", "engine": "helper"}}),
    "memory_r1_mem0": (
        "memory_r1",
        {
            "extractor": {"namespaces": "speaker"},
            "updater": {"format": "mem0"},
            "retriever": {"name": "rerank_retriever", "fallback": "search"},
            "answerer": {"name": "citing_answer", "sources": True},
        },
    ),
    "memory_rmm": ("memory_rmm", {}),
    "memory_rmm_linear": ("memory_rmm", {"retriever": {"name": "linear_reranker", "candidates": 8, "keep": 3}}),
}


@pytest.mark.parametrize("name", AGENTS_PLAYED)
def test_any_output_plays_on_is_scored_and_leaves_a_lawful_bank(name):
    banks = BankSource(MemoryConfig(embedder=LexicalEmbedderConfig(dimensions=64)))
    env = environment()
    of, modules = AGENTS_PLAYED[name]
    played = agent(of, banks, **modules)
    learner = played.modules["retriever"]
    if isinstance(learner, LearningModule):
        learner.learning = True
    policy, helper = Babbler(seed=1), Babbler(seed=2)

    def failing(messages: Sequence[Message], sampling: Sampling) -> Reply:
        if helper.random.random() < 0.02:
            raise EngineError("HTTP 503")
        return helper(messages, sampling)

    engines = {"policy": ScriptedEngine(policy), "helper": ScriptedEngine(failing)}
    totals: list[float | None] = []
    rounds = 0
    while policy.said < OUTPUTS:
        rounds += 1
        task = TASKS[rounds % len(TASKS)]
        episodes = [Episode(task, member, seed=rounds) for member in range(GROUP)]
        assert len(list(play(Sampler(played, engines), episodes))) == GROUP
        rewards = env.score(episodes)
        for episode, reward in zip(episodes, rewards, strict=True):
            check_reward(episode, reward)
            if episode.failure is None:
                check_episode(episode)
        check_advantages(task, episodes, rewards)
        read_back = [SampleRecord.from_json(record("set", episode, {}).to_json()).episode(task) for episode in episodes]
        assert env.score(read_back) == rewards  # what is on disk is scored as what was played
        assert tuple(banks.open(task.memory).list()) == task.memory  # no attempt leaks into the next
        totals += [reward.total for reward in rewards]
        if isinstance(learner, LearningModule):
            assert all(map(math.isfinite, learner.learn(episodes).values()))
    known = [total for total in totals if total is not None]
    assert max(known) > 1 > 0.2 > min(known)  # the replies are neither all nonsense nor all right
    assert any(total is None for total in totals) == (name == "memory_r1")


def check_reward(episode: Episode, reward: Reward) -> None:
    values = [reward.total, *reward.parts.values(), *reward.steps.values()]
    if episode.failure is not None:
        assert values == [None] * len(values)
        return
    assert all(isinstance(value, float) and math.isfinite(value) for value in values)
    assert all(0 <= part <= 1 for name, part in reward.parts.items() if name != "compression")
    assert reward.parts["compression"] <= 0
    assert reward.parts["em"] in (0, 1)


def check_episode(episode: Episode) -> None:
    task, bank = episode.task, episode.bank
    assert bank is not None
    assert all(0 <= mark <= 1 for marks in episode.checks.values() for mark in marks)
    items = bank.list()
    held = {item.id: item for item in items}
    assert len(held) == len(items) == len(bank)
    sources = {turn.id for turn in task.conversation} | {source for item in task.memory for source in item.sources}
    given = {item.id for item in task.memory}
    for item in items:
        assert item.value.strip() and item.key.encode() is not None and item.value.encode() is not None
        assert set(item.sources) <= sources and len(set(item.sources)) == len(item.sources)
        assert bank.get(item.id) == item
    number = 1
    ids = list(given)
    while number <= 2 + len(given) or bank.history(ids[-1]):
        ids.append(f"m{number}")
        number += 1
    alive = 0
    for id in dict.fromkeys(ids):
        state = None
        for event in bank.history(id):
            assert event.before == state
            state = event.after
        assert state == bank.get(id)
        alive += state is not None
    assert alive == len(bank)
    assert len({item.id for item in episode.retrieved}) == len(episode.retrieved)
    assert all(held.get(item.id) == item for item in episode.retrieved)
    assert episode.citations is None or {*episode.citations} <= {item.id for item in episode.retrieved}


def check_advantages(task: Task, episodes: Sequence[Episode], rewards: Sequence[Reward]) -> None:
    group = Group(
        task,
        tuple(
            Trajectory(episode.index, tuple(episode.turns), episode.answer, reward)
            for episode, reward in zip(episodes, rewards, strict=True)
        ),
    )
    for credit in step_advantages(group, GrpoOptions()).values():
        assert [advantage is None for advantage in credit] == [reward.total is None for reward in rewards]
        assert all(math.isfinite(advantage) for advantage in credit if advantage is not None)

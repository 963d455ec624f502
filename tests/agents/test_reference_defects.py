"""What goes wrong in the published implementation of these environments, played here: it earns nothing and breaks
nothing."""

from __future__ import annotations

import json

import pytest

from memfactory.build import build_rewards
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.memory.bank import BankSource
from memfactory.play import Sampler, play
from memfactory.registry import AGENTS, ENVS, MODULES
from memfactory.types import MemoryItem, Task, Utterance
from word_codec import WordCodec

KNOWN = (
    MemoryItem("a", "", "Ada has a red boat.", sources=("D0:1",), namespace="Ada"),
    MemoryItem("b", "", "Bob has a dog.", sources=("D0:2",), namespace="Bob"),
)
TASK = Task(
    "t",
    "Who has a boat?",
    ("Ada",),
    memory=KNOWN,
    conversation=(Utterance("Bob", "I bought a green boat.", "D1:1"),),
    evidence=("D0:1",),
)
FOUND = json.dumps({"memory_list": [{"key": "boat", "value": "Bob has a green boat."}]})
RERANK = {"memory_format": {"weight": 0.5, "steps": ["rerank"]}, "citations": 1.0}
REWARD = {"em": 1.0, "memory_format": 0.5}


def agent(banks, **modules):
    filled = {
        slot: MODULES.get(name)(MODULES.options(name).model_validate(options), WordCodec())
        for slot, (name, options) in {
            **{slot: (name, {}) for slot, name in AGENTS.get("memory_r1").slots.items()},
            **modules,
        }.items()
    }
    return AGENTS.get("memory_r1")(AGENTS.options("memory_r1")(), filled, banks)


def played(extract=FOUND, update="", rerank=None, answer="**Answer:** Bob", banks=None, task=TASK, **modules):
    """The attempt in which these replies are given, each to the prompt that asks for it."""
    replies = {'"memory_list"': extract, '"operations"': update, "their numbers": rerank}
    if rerank is not None:
        modules = {"retriever": ("rerank_retriever", {}), "answerer": ("citing_answer", {})} | modules

    def said(messages, sampling):
        return next((r for mark, r in replies.items() if mark in messages[-1].content), answer)

    (episode,) = play(
        Sampler(agent(banks or BankSource(), **modules), {"policy": ScriptedEngine(said)}), [Episode(task)]
    )
    return episode


def total(episode, rewards=REWARD):
    options = ENVS.options("memory_bank")(rewards=rewards)
    (reward,) = ENVS.get("memory_bank")(options, build_rewards(options.rewards, {})).score([episode])
    return reward.total


def decided(*operations):
    return json.dumps({"operations": list(operations)})


def values(episode):
    return [item.value for item in episode.bank.list()]


def test_empty_lists_earn_nothing_and_change_nothing():
    for extract, update in ((json.dumps({"memory_list": []}), ""), (FOUND, decided())):
        episode = played(extract, update)
        assert values(episode) == [item.value for item in KNOWN]
        assert total(episode) == (0.0 if extract != FOUND else 0.25)  # the extraction alone was well-formed: 0.5 / 2
    assert total(played(json.dumps({"memory_list": []}), decided())) == 0.0
    assert total(played(json.dumps({"memory_list": []}), decided(), answer="**Answer:** Ada")) == 1.0


def test_numbers_may_be_written_as_text():
    keep = {"id": "1", "op": "NONE"}, {"id": "2", "op": "NONE"}, {"id": "3", "op": "ADD"}
    episode = played(update=decided(*keep))
    assert values(episode) == [*(item.value for item in KNOWN), "Bob has a green boat."]
    assert total(episode) == 0.5


@pytest.mark.parametrize(
    ("operations", "form"),
    [
        (({"id": 3, "op": "ADD"},), 1 / 3),  # two of three numbers are not decided
        (({"id": 1, "op": "BURN"}, {"id": 2, "op": "NONE"}, {"id": 3, "op": "NONE"}), 2 / 3),
        (({"id": 1, "op": "NONE"}, {"id": 2, "op": "NONE"}, {"id": 3, "op": "DEL"}), 2 / 3),  # DEL of a new entry
        (("NONE", {"id": 2, "op": "NONE"}, {"id": 3, "op": "NONE"}), 2 / 4),  # one is no object: a stray
        (({"id": 9, "op": "DEL"}, {"id": 2, "op": "NONE"}, {"id": 3, "op": "NONE"}), 2 / 4),  # there is no 9
    ],
)
def test_what_is_no_decision_counts_against_the_form(operations, form):
    episode = played(update=decided(*operations))
    assert episode.checks == {"extract": [1.0], "update": [pytest.approx(form)], "answer": [1.0]}
    assert [item.value for item in KNOWN] == values(episode)[:2]  # nothing of it touches the bank


@pytest.mark.parametrize("reply", ['"memory_list"', "7", "null", '{"memory_list": null}', '["memory_list"]'])
def test_json_that_is_no_list_of_entries_earns_nothing(reply):
    assert total(played(extract=reply)) == 0.0


@pytest.mark.parametrize("reply", ['"operations"', "7", '{"operations": null}', '{"operations": {"id": 1}}'])
def test_json_that_is_no_list_of_operations_earns_nothing_for_the_update(reply):
    episode = played(update=reply)
    assert episode.checks["update"] == [0.0] and total(episode) == 0.25


def test_what_is_thought_is_not_graded():
    fenced = f"<think>```json\n{FOUND}\n```</think>"
    assert total(played(extract=f"{fenced}nothing")) == 0.0
    assert total(played(extract=f"<think>{FOUND}")) == 0.0  # thinking never ended


@pytest.mark.parametrize(
    ("reply", "retrieved", "form"),
    [
        ("[1, 1, 1, 1, 1, 1, 1, 1]", 1, 1 / 8),
        ("[99]", 0, 0),
        ("<think>perhaps [1]", 0, 0),
        ("<think>perhaps [2]</think>[1]", 1, 1),
    ],
)
def test_a_choice_counts_once_and_only_where_it_can_be_made(reply, retrieved, form):
    episode = played(extract="", rerank=reply, answer="Bob [0]")
    assert (len(episode.retrieved), episode.checks["rerank"]) == (retrieved, [form])
    cited = 1.0 if retrieved else 0.0  # all of what was retrieved is cited, or nothing was retrieved
    assert total(episode, RERANK) == pytest.approx(0.5 * form + cited)


def test_attempts_share_no_memory():
    # The reference keeps one store for a process: an attempt sees what another wrote.
    banks = BankSource()
    keep = {"id": 1, "op": "DEL"}, {"id": 2, "op": "NONE"}, {"id": 3, "op": "ADD"}
    first = played(update=decided(*keep), banks=banks)
    second = played(update="", banks=banks)
    assert values(first) == ["Bob has a dog.", "Bob has a green boat."]
    assert values(second) == [item.value for item in KNOWN]


def test_what_is_added_belongs_to_who_said_it_and_is_found_as_such():
    # The reference files everything under one user, and its search ignores users.
    add = {"id": 1, "op": "NONE"}, {"id": 2, "op": "ADD"}
    episode = played(update=decided(*add), extractor=("naive_extractor", {"namespaces": "speaker"}))
    new = episode.bank.list()[-1]
    assert (new.namespace, new.sources) == ("Bob", ("D1:1",))
    found = episode.bank.search("boat", 5, namespaces=["Bob"])
    assert {one.item.namespace for one in found} == {"Bob"}
    assert episode.checks["update"] == [1.0]  # only Bob's memory was shown beside his new entry

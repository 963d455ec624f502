"""From a reply to operations on the bank: what is legal for what was shown, and what the updaters make of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.formats.updates import parse_mem0, parse_merges, parse_operations
from memfactory.memory.bank import BankSource
from memfactory.memory.operations import Add, Delete, Keep, Update
from memfactory.modules.naive_updater import NaiveUpdater, NaiveUpdaterOptions
from memfactory.modules.topic_updater import TopicUpdater, TopicUpdaterOptions
from memfactory.roles import Updater
from memfactory.types import Candidate, MemoryItem, Sampling, Task

HOME = MemoryItem("a", "home", "Ada lives in Rome.", sources=("D1:1",))
PET = MemoryItem("b", "pet", "Ada has a dog.", sources=("D1:2",), created_at="8 May")
ITEMS = [HOME, PET]
MOVE = Candidate("Ada moved to Oslo.", "home", sources=("D2:1",), time="9 May")
WORK = Candidate("Bob is a cook.", "work", sources=("D2:2",), time="10 May")
NEW = [MOVE, WORK]
NOTHING_DONE = (Keep("a"), Keep("b"), Keep(), Keep())
SOURCE = BankSource()


def said(*operations: object) -> str:
    return json.dumps({"operations": operations})


def mem0(*entries: object) -> str:
    return json.dumps({"memory": entries})


def decided(text: str):
    return parse_operations(text, ITEMS, NEW)


def updated(
    module: Updater,
    replies: str | Sequence[str],
    *,
    items: Sequence[MemoryItem] = ITEMS,
    candidates: Sequence[Candidate] = NEW,
    related: tuple[str, ...] | None = None,
) -> tuple[Episode, list[str]]:
    """The episode after the module has updated its bank, and what it asked."""
    upcoming = [replies] if isinstance(replies, str) else list(replies)
    bank = SOURCE.open(items)
    episode, asked = Episode(Task("t", "q", ("a",), related=related), bank=bank), []
    engine = ScriptedEngine(lambda messages, sampling: upcoming.pop(0))
    asking = module.dialogue(episode, bank, tuple(candidates))
    try:
        ask = next(asking)
        while True:
            asked.append(ask.messages[-1].content)
            assert ask.step == "update"
            (outcome,) = engine.try_sample([(ask.messages, Sampling(ask.max_tokens))])
            ask = asking.send(outcome)
    except StopIteration as end:
        assert end.value is None
        return episode, asked


def values(episode: Episode) -> list[str]:
    return [item.value for item in episode.bank.list()]


def updater(**options: object) -> NaiveUpdater:
    return NaiveUpdater(NaiveUpdaterOptions.model_validate(options), None)


def merger(**options: object) -> TopicUpdater:
    return TopicUpdater(TopicUpdaterOptions.model_validate(options), None)


# Operations by number


@pytest.mark.parametrize(
    ("number", "op", "operation"),
    [
        # Items: NONE and DEL. Where the operation is not legal, the item stays.
        (1, "NONE", Keep("a")),
        (1, "DEL", Delete("a")),
        (1, "ADD", None),
        (1, "UPDATE", None),
        # Candidates: ADD, UPDATE and NONE.
        (3, "NONE", Keep()),
        (3, "DEL", None),
        (3, "ADD", Add(MOVE)),
        (3, "UPDATE", Add(Candidate("Ada is in Oslo.", "town", sources=("D2:1",), time="9 May"))),
        # Synonyms, in any capitals.
        (1, "delete", Delete("a")),
        (1, "noop", Keep("a")),
        (3, "NO_OP", Keep()),
        (3, "no operation", Keep()),
        (3, "add", Add(MOVE)),
        # What is no operation (defect 3: unknown names kept the reward).
        (1, "FORGET", None),
        (3, "", None),
        (3, None, None),
        (3, ["ADD"], None),
    ],
)
def test_each_operation_is_legal_for_what_it_is_of(number, op, operation):
    extra = {"key": "town", "value": "Ada is in Oslo."}
    others = [{"id": other, "op": "NONE"} for other in (1, 2, 3, 4) if other != number]
    found = decided(said({"id": number, "op": op, **extra}, *others))
    expected = list(NOTHING_DONE)
    expected[number - 1] = operation or expected[number - 1]
    assert found.operations == tuple(expected)
    assert found.form == (1.0 if operation else 3 / 4)


def test_an_update_may_keep_the_key_but_without_a_value_it_is_a_mended_add():
    rest = [{"id": number, "op": "NONE"} for number in (1, 2, 4)]
    found = decided(said({"id": 3, "op": "UPDATE", "value": "Ada is in Oslo."}, *rest))
    assert found.operations[2] == Add(Candidate("Ada is in Oslo.", "home", sources=("D2:1",), time="9 May"))
    assert found.form == 1.0
    found = decided(said({"id": 3, "op": "UPDATE", "value": "  "}, *rest))
    assert (found.operations[2], found.form) == (Add(MOVE), 3 / 4)


def test_a_merge_deletes_the_old_and_takes_up_the_new():
    found = decided(said(
        {"id": "1", "op": "DEL"},
        {"id": 2, "op": "NONE"},
        {"id": "3", "op": "UPDATE", "value": "Ada moved from Rome to Oslo."},
        {"id": 4, "op": "NONE"},
    ))  # fmt: skip
    assert found.form == 1.0  # defect 3: ids as strings lost the reward
    bank = SOURCE.open(ITEMS)
    assert bank.apply(found.operations).committed
    assert [item.value for item in bank.list()] == ["Ada has a dog.", "Ada moved from Rome to Oslo."]


@pytest.mark.parametrize(
    ("operations", "form"),
    [
        # Coverage counts: 1 of 4 is decided.
        ([{"id": 1, "op": "DEL"}], 1 / 4),
        # A number decided twice is not decided by exactly one operation; the first takes effect: 0 of 4.
        ([{"id": 1, "op": "DEL"}, {"id": "1", "op": "NONE"}], 0.0),
        # Ids that were not shown, and entries that are no objects (defect 13), count as one thing more each: 1 of 9.
        (
            [{"id": 1, "op": "DEL"}, {"id": 5, "op": "ADD"}, {"id": 0, "op": "DEL"}, {"op": "ADD"}, "DEL 2", None],
            1 / 9,
        ),
        ([{"id": True, "op": "DEL"}, {"id": 1, "op": "DEL"}], 1 / 5),
        ([{"id": 1.0, "op": "ADD"}, {"id": 1, "op": "DEL"}], 1 / 5),
    ],
)
def test_what_is_not_decided_by_exactly_one_operation_lowers_the_form(operations, form):
    found = decided(said(*operations))
    assert found.operations == (Delete("a"), *NOTHING_DONE[1:])
    assert found.form == form


@pytest.mark.parametrize(
    "text",
    [
        "",
        said(),  # defect 2: no operation at all earned the full reward
        '{"operations": null}',  # defect 3
        '{"operations": {"id": 1, "op": "DEL"}}',
        '"operations"',
        '["operations"]',
        "3",
        said({"id": 1, "op": "DEL"})[:-1],
        f"<think>{said({'id': 1, 'op': 'DEL'})}",
        said({"id": 1, "op": "ADD"}, {"id": 3, "op": "DEL"}),
    ],
)
def test_a_malformed_reply_changes_nothing_and_scores_nothing(text):
    found = decided(text)
    assert (found.operations, found.form) == (NOTHING_DONE, 0.0)


def test_words_around_the_operations_count_as_one_thing_more():
    text = said(*({"id": number, "op": "NONE"} for number in (1, 2, 3, 4)))
    assert decided(f"```json\n{text}\n```").form == 1.0
    assert decided(f"Nothing changes. {text}").form == 4 / 5


# mem0's list


def test_mem0s_list_keeps_updates_deletes_and_adds():
    found = parse_mem0(
        mem0(
            {
                "id": "0",
                "text": "home: Ada moved to Oslo.",
                "event": "UPDATE",
                "old_memory": "home: Ada lives in Rome.",
            },
            {"id": 1, "text": "pet: Ada has a dog.", "event": "DELETE"},
            {"id": "2", "text": "work: Bob is a cook.", "event": "ADD"},
            {"id": "0", "text": "Bob cooks soup.", "event": "ADD"},
        ),
        ITEMS,
        NEW,
    )
    assert found.operations == (
        # What the text is written over keeps its id and gains where the new text was said.
        Update("a", "home: Ada moved to Oslo.", None, ("D2:1",), "9 May"),
        Delete("b"),
        Add(WORK),
        # An id that is in use is given again; the nearest fact is "Bob is a cook.".
        Add(Candidate("Bob cooks soup.", sources=("D2:2",), time="10 May")),
    )
    assert found.form == 1.0
    bank = SOURCE.open(ITEMS)
    assert bank.apply(found.operations).committed
    assert [(item.id, item.value, item.version, item.sources) for item in bank.list()] == [
        ("a", "home: Ada moved to Oslo.", 2, ("D1:1", "D2:1")),
        ("m1", "Bob is a cook.", 1, ("D2:2",)),
        ("m2", "Bob cooks soup.", 1, ("D2:2",)),
    ]
    assert [event.before is None for event in bank.history("a")] == [True, False]


def test_an_updated_text_says_just_what_was_written():
    found = parse_mem0(mem0({"id": "0", "text": "Ada is in Oslo.", "event": "UPDATE"}), [HOME], NEW)
    assert found.operations == (Update("a", "Ada is in Oslo.", "", ("D2:1",), "9 May"),)
    same = parse_mem0(mem0({"id": "0", "text": "home: Ada lives in Rome.", "event": "UPDATE"}), [HOME], NEW)
    assert same.operations == (Keep("a"),)


@pytest.mark.parametrize("event", ["NONE", "NOOP", "NO_OP", "NO OPERATION", "none"])
def test_every_word_for_no_operation_keeps_the_entry(event):
    found = parse_mem0(mem0({"id": "0", "text": "x", "event": event}), [HOME], NEW)
    assert (found.operations, found.form) == ((Keep("a"),), 1.0)


@pytest.mark.parametrize(
    ("entries", "operations", "form"),
    [
        # An id that is not there, an ADD without a text, one that repeats another, no object: 1 added of 2 + 1 + 4.
        (
            [
                {"id": "7", "event": "DELETE"},
                {"event": "ADD"},
                {"event": "ADD", "text": "Bob cooks soup."},
                {"event": "ADD", "text": "bob cooks soup."},
                3,
            ],
            (Keep("a"), Keep("b"), Add(Candidate("Bob cooks soup.", sources=("D2:2",), time="10 May"))),
            1 / 7,
        ),
        # The second operation on one id is rejected, and the id is not decided by exactly one: 1 of 2.
        (
            [{"id": "0", "event": "DELETE"}, {"id": "0", "event": "NONE"}, {"id": "1", "event": "NONE"}],
            (Delete("a"), Keep("b")),
            1 / 2,
        ),
        # An UPDATE without a text and an event that there is not: 0 of 2.
        ([{"id": "0", "event": "UPDATE"}, {"id": "1", "event": "FORGET"}], (Keep("a"), Keep("b")), 0.0),
        ([], (Keep("a"), Keep("b")), 0.0),
    ],
)
def test_what_mem0s_list_may_not_say_is_left_out(entries, operations, form):
    found = parse_mem0(mem0(*entries), ITEMS, NEW)
    assert (found.operations, found.form) == (operations, form)


def test_many_new_entries_in_mem0s_list_do_not_make_up_for_what_is_left_undecided():
    # Two items, left out, and eight new entries of two candidates: 2 of 2 + 8.
    found = parse_mem0(mem0(*({"event": "ADD", "text": f"entry {number}"} for number in range(8))), ITEMS, NEW)
    assert len(found.operations) == 10 and found.form == 2 / 10


def test_an_empty_list_for_an_empty_memory_scores_nothing():
    assert parse_mem0(mem0(), [], NEW).form == 0.0


# RMM's actions


@pytest.mark.parametrize(
    ("text", "operations", "form"),
    [
        ("Add()", (Add(MOVE),), 1.0),
        ("\n add( ) \n", (Add(MOVE),), 1.0),
        # From the first comma to the last parenthesis.
        (
            "Merge(0, Ada left Rome (May, 2023), then moved to Oslo (Norway))",
            (Update("a", "Ada left Rome (May, 2023), then moved to Oslo (Norway)", None, ("D2:1",), "9 May"),),
            1.0,
        ),
        ("<think>Merge(0, x)</think>Merge( 1 ,y)", (Update("b", "y", None, ("D2:1",), "9 May"),), 1.0),
        # Several actions; a second one on an item and prose are left out: 2 of 4 lines.
        (
            "Merge(1, y)\nMerge(1, z)\nAnd:\nAdd()",
            (Update("b", "y", None, ("D2:1",), "9 May"), Add(MOVE)),
            2 / 4,
        ),
        # No action: the candidate is added, and the format was not kept.
        ("", (Add(MOVE),), 0.0),
        ("I would merge them.", (Add(MOVE),), 0.0),
        ("Merge(2, there is no such item)", (Add(MOVE),), 0.0),
        ("Merge(-1, x)\nMerge(0, )\nMerge(0)\nMerge(0, open", (Add(MOVE),), 0.0),
        ("Merge(99999999999, x)", (Add(MOVE),), 0.0),
        ("<think>Merge(0, x)", (Add(MOVE),), 0.0),
    ],
)
def test_a_topic_is_added_or_merged(text, operations, form):
    found = parse_merges(text, ITEMS, MOVE)
    assert (found.operations, found.form) == (operations, form)


# Whatever a model says

ids = st.integers(-1, 6) | st.integers(0, 5).map(str) | st.booleans() | st.none() | st.floats() | st.text(max_size=3)
names = st.sampled_from(["ADD", "DEL", "UPDATE", "NONE", "delete", "noop", "x", "MERGE"]) | st.none() | st.integers()
texts = st.text(max_size=10) | st.just("Ada moved to Oslo.") | st.none() | st.lists(st.text(max_size=3), max_size=2)
entry = st.fixed_dictionaries(
    {}, optional={"id": ids, "op": names, "event": names, "key": texts, "value": texts, "text": texts}
)
lists = st.lists(entry | st.none() | st.integers() | st.text(max_size=5), max_size=8)
objects = st.dictionaries(st.sampled_from(["operations", "memory", "x"]), lists | entry | st.none()).map(json.dumps)
actions = st.lists(
    st.sampled_from(["Add()", "Merge(0, a)", "Merge(1, b)", "Merge(0, (c), d)", "Merge(5, e)", "Merge(", "Merge(0, )"])
    | st.text(max_size=10),
    max_size=5,
).map("\n".join)


@given(st.text() | objects | actions | st.tuples(st.text(max_size=10), objects, st.text(max_size=10)).map("".join))
def test_whatever_a_reply_says_can_be_applied_and_is_scored_from_0_to_1(text):
    for found in (parse_operations(text, ITEMS, NEW), parse_mem0(text, ITEMS, NEW), parse_merges(text, ITEMS, MOVE)):
        assert 0 <= found.form <= 1
        bank = SOURCE.open(ITEMS)
        assert bank.apply(found.operations).committed
        for item in bank.list():
            f"{item.key}{item.value}".encode()
            assert item.value.strip()
    assert parse_operations(text, [], []).operations == ()


# The module naive_updater


def test_the_updater_numbers_items_and_candidates_and_applies_what_is_legal():
    text = said(
        {"id": 1, "op": "DEL"}, {"id": 2, "op": "NONE"}, {"id": 3, "op": "ADD"}, {"id": 4, "op": "NONE"}
    )  # fmt: skip
    episode, (prompt,) = updated(updater(), text)
    assert "<memory>\n1. home: Ada lives in Rome.\n2. pet: Ada has a dog.\n</memory>" in prompt
    assert "<new>\n3. home: Ada moved to Oslo.\n4. work: Bob is a cook.\n</new>" in prompt
    assert values(episode) == ["Ada has a dog.", "Ada moved to Oslo."]
    assert episode.bank.list()[1] == MemoryItem("m1", "home", MOVE.value, sources=("D2:1",), created_at="9 May")
    assert episode.checks == {"update": [1.0]}


@pytest.mark.parametrize("format", ["operations", "mem0"])
def test_a_malformed_update_leaves_the_bank_as_it_was(format):
    episode, asked = updated(updater(format=format), "Ada moved, so delete the first.")
    assert episode.bank.list() == ITEMS
    assert len(asked) == 1 and episode.checks == {"update": [0.0]}


def test_mem0s_prompt_shows_small_ids_and_the_facts():
    episode, (prompt,) = updated(updater(format="mem0"), mem0({"id": "1", "event": "DELETE"}))
    assert '[{"id": "0", "text": "home: Ada lives in Rome."}, {"id": "1", "text": "pet: Ada has a dog."}]' in prompt
    assert '["home: Ada moved to Oslo.", "work: Bob is a cook."]' in prompt
    assert values(episode) == ["Ada lives in Rome."] and episode.checks == {"update": [1 / 2]}


def test_without_candidates_nothing_is_asked_but_an_empty_bank_is_no_reason():
    assert updated(updater(), [], candidates=())[1] == []
    assert updated(merger(), [], candidates=())[1] == []
    episode, (prompt,) = updated(updater(), said({"id": 1, "op": "ADD"}, {"id": 2, "op": "NONE"}), items=())
    assert "<memory>\n(nothing)\n</memory>" in prompt and "1. home: Ada moved to Oslo." in prompt
    assert values(episode) == [MOVE.value] and episode.checks == {"update": [1.0]}


def test_the_items_that_the_task_names_are_shown_in_the_order_of_the_bank():
    assert updater(shown=1).items(SOURCE.open(ITEMS), NEW, ("gone", "b", "a")) == [PET]
    _, (prompt,) = updated(updater(related=0), said(), related=("b", "gone", "a"))
    assert "1. home: Ada lives in Rome.\n2. pet: Ada has a dog." in prompt
    assert "<memory>\n1. pet: Ada has a dog.\n</memory>" in updated(updater(), said(), related=("b",))[1][0]
    assert "<memory>\n(nothing)\n</memory>" in updated(updater(), said(), related=())[1][0]


def test_the_best_match_of_each_candidate_is_shown_before_any_second_best():
    items = [MemoryItem(f"i{n}", "", text) for n, text in enumerate(
        ["Ada lives in Rome", "Ada moved to Rome", "Bob is a teacher", "Ada moved to Oslo", "Bob is a cook"]
    )]  # fmt: skip
    module, bank = updater(related=3, shown=2), SOURCE.open(items)
    assert [item.id for item in module.items(bank, NEW, None)] == ["i3", "i4"]
    assert [item.id for item in updater(related=3, shown=3).items(bank, NEW, None)] == ["i1", "i3", "i4"]
    assert updater(related=0).items(bank, NEW, None) == updater(shown=0).items(bank, NEW, None) == []


def test_items_are_looked_for_in_the_candidates_own_namespace():
    items = [
        MemoryItem("i1", "", "Ada moved to Oslo", namespace="Bob"),
        MemoryItem("i2", "", "Ada likes tea", namespace="Ada"),
    ]
    own = Candidate("Ada moved to Oslo.", namespace="Ada")
    assert [item.id for item in updater(related=1).items(SOURCE.open(items), [own], None)] == ["i2"]
    text = "Merge(0, Ada likes tea and moved to Oslo.)"
    episode, (prompt,) = updated(merger(), text, items=items, candidates=[own])
    assert '{"history_summaries": ["Ada likes tea"]}\n{"new_summary": "Ada moved to Oslo."}' in prompt
    assert [(item.id, item.value) for item in episode.bank.list()][1] == ("i2", "Ada likes tea and moved to Oslo.")


# The module topic_updater


def test_a_merge_unites_where_topics_come_from_and_a_later_topic_sees_it():
    one, two = Candidate("Ada moved to Oslo.", sources=("D2:1",)), Candidate("Ada rents a flat.", sources=("D2:3",))
    home = MemoryItem("a", "", "Ada lives in Rome.", sources=("D1:1",))
    replies = ["Merge(0, Ada moved from Rome to Oslo.)", "nonsense"]
    episode, asked = updated(merger(), replies, items=[home], candidates=[one, two])
    assert '{"history_summaries": ["Ada moved from Rome to Oslo."]}' in asked[1]
    assert [(item.id, item.value, item.sources) for item in episode.bank.list()] == [
        ("a", "Ada moved from Rome to Oslo.", ("D1:1", "D2:1")),
        ("m1", "Ada rents a flat.", ("D2:3",)),
    ]
    assert episode.checks == {"update": [1.0, 0.0]}


def test_a_topic_with_nothing_to_merge_with_is_added_without_an_ask():
    episode, asked = updated(merger(), [], items=(), candidates=[MOVE])
    assert (values(episode), asked, episode.checks) == ([MOVE.value], [], {})

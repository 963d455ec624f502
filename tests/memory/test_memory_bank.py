"""Memory banks: items, versions, history, operations, forks; and their laws under any sequence of operations."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from memfactory.errors import DataError
from memfactory.memory.bank import BankSource, Event
from memfactory.memory.operations import Add, ApplyReport, Delete, Invalid, Keep, Outcome, Update
from memfactory.types import Candidate, MemoryItem

ANN = MemoryItem("m2", "job", "Ann is a nurse", sources=("D1:1",), created_at="May", namespace="Ann")
BOB = MemoryItem("x", "pet", "Bob has a dog", namespace="Bob")


def replayed(events):
    """The items that a series of events leads to, in order."""
    state = {}
    for event in events:
        assert event.before == state.get(event.id)
        if event.after is None:
            del state[event.id]
        else:
            state[event.id] = event.after
    return list(state.values())


def test_new_items_get_ids_that_no_item_ever_had():
    bank = BankSource().open([ANN, BOB])
    # "m2" is Ann's.
    assert [bank.add("one"), bank.add("two")] == ["m1", "m3"]
    bank.delete("m3")
    bank.delete("m2")
    assert bank.add("three") == "m4"
    assert [item.id for item in bank.list()] == ["x", "m1", "m4"]


def test_an_item_keeps_all_that_its_candidate_says():
    bank = BankSource().open()
    id = bank.add(Candidate("Ann is a nurse", "job", "UserMemory", ("work",), ("D1:1", "D1:2"), "Ann", "May"))
    assert bank.get(id) == MemoryItem(
        "m1", "job", "Ann is a nurse", "UserMemory", ("work",), ("D1:1", "D1:2"), "May", None, 1, "Ann"
    )


def test_an_update_is_the_next_version_with_the_sources_of_both():
    bank = BankSource().open([ANN, BOB])
    new = bank.update("m2", "Ann is a pilot", sources=("D4:2", "D1:1"), time="June")
    assert new == MemoryItem(
        "m2", "job", "Ann is a pilot", "fact", (), ("D1:1", "D4:2"), "May", "June", version=2, namespace="Ann"
    )
    assert bank.list() == [new, BOB]
    newer = bank.update("m2", "a pilot", key="work")
    assert (newer.key, newer.version, newer.updated_at) == ("work", 3, "June")
    assert bank.history("m2") == [Event(None, ANN), Event(ANN, new), Event(new, newer)]


def test_a_deleted_item_is_gone_but_its_history_stays():
    bank = BankSource().open([ANN, BOB])
    assert bank.delete("m2") == ANN
    assert (bank.get("m2"), bank.list(), len(bank)) == (None, [BOB], 1)
    assert bank.history("m2") == [Event(None, ANN), Event(ANN, None)]
    assert bank.history("nobody") == []
    with pytest.raises(LookupError, match="the bank has no item 'm2'; it holds 1"):
        bank.delete("m2")
    with pytest.raises(LookupError, match="no item 'm9'"):
        bank.update("m9", "new")


def test_namespaces_are_exact():
    bank = BankSource().open([ANN, BOB, MemoryItem("y", "", "somebody")])
    assert bank.list(["Bob"]) == [BOB]
    assert bank.list("Bob") == [BOB] and bank.list("Bo") == []
    assert [match.item for match in bank.search("Bob", namespaces="Bob")] == [BOB]
    assert [item.id for item in bank.list([""])] == ["y"]
    assert [item.id for item in bank.list(["Bob", "Ann"])] == ["m2", "x"]
    assert bank.list([]) == []


def test_apply_does_each_operation_and_says_what_became_of_it():
    bank = BankSource().open([ANN, BOB])
    report = bank.apply(
        [
            Update("m2", "Ann is a pilot", time="June"),
            Delete("x"),
            Add(Candidate("Cat naps")),
            Keep(),
            Add(Candidate("b")),
        ]
    )
    assert report == ApplyReport(
        (
            Outcome("applied", "m2"),
            Outcome("applied", "x"),
            Outcome("applied", "m1"),
            Outcome("noop"),
            Outcome("applied", "m3"),
        ),
        committed=True,
    )
    assert [(item.id, item.value) for item in bank.list()] == [
        ("m2", "Ann is a pilot"),
        ("m1", "Cat naps"),
        ("m3", "b"),
    ]


def test_one_invalid_operation_leaves_the_bank_as_it_was_and_no_other_claims_to_be_applied():
    bank = BankSource().open([ANN, BOB])
    report = bank.apply(
        [Add(Candidate("new")), Delete("m7"), Delete("x"), Update("x", "two"), Invalid("ADDD", "no such operation")]
    )
    assert report == ApplyReport(
        (
            Outcome("noop", None, "not committed: operation 2 is invalid"),
            Outcome("invalid", "m7", "the bank has no item 'm7'"),
            Outcome("noop", "x", "not committed: operation 2 is invalid"),
            Outcome("invalid", "x", "a second operation on the item 'x'"),
            Outcome("invalid", None, "no such operation"),
        ),
        committed=False,
    )
    assert bank.list() == [ANN, BOB]
    assert bank.history("x") == [Event(None, BOB)]
    # The id that the new item would have got is not used up.
    assert bank.add("new") == "m1"


def test_keeping_an_item_that_is_not_there_is_invalid():
    report = BankSource().open([BOB]).apply([Keep("x"), Keep("y")])
    assert [outcome.status for outcome in report.outcomes] == ["noop", "invalid"]


def test_two_items_of_one_id_are_no_bank():
    with pytest.raises(DataError, match="two memory items have the id 'x'"):
        BankSource().open([BOB, ANN, BOB])


def test_forks_do_not_see_each_other_nor_what_they_come_from():
    bank = BankSource().open([ANN, BOB])
    bank.add("before")
    left, right = bank.fork(), bank.fork()
    left.update("x", "Bob has a cat")
    deeper = left.fork()
    deeper.delete("x")
    right.add("right")
    bank.delete("m2")
    assert [item.value for item in bank.list()] == ["Bob has a dog", "before"]
    assert [item.value for item in left.list()] == ["Ann is a nurse", "Bob has a cat", "before"]
    assert [item.value for item in deeper.list()] == ["Ann is a nurse", "before"]
    assert [item.value for item in right.list()] == ["Ann is a nurse", "Bob has a dog", "before", "right"]
    # Both have given "m3" to what they added next.
    assert left.add("left") == "m3" == right.list()[-1].id


def test_banks_of_equal_items_share_what_was_computed_but_nothing_else():
    source = BankSource()
    one, two = source.open([ANN, BOB]), source.open([ANN, BOB])
    one.delete("x")
    assert two.list() == [ANN, BOB]
    assert source.open([ANN, BOB])._contents.base is two._contents.base


def test_a_fork_copies_what_was_changed_and_not_the_bank():
    bank = BankSource().open([MemoryItem(str(number), "", "text") for number in range(1000)])
    bank.update("3", "changed")
    bank.delete("4")
    fork = bank.fork()
    assert fork._contents.base is bank._contents.base
    assert len(fork._contents.changed) + len(fork._contents.added) == 2


def test_many_changes_become_the_base_of_later_forks():
    bank = BankSource().open([ANN])
    for number in range(100):
        bank.add(f"item {number}")
    bank.update("m7", "changed")
    before = bank.list()
    fork = bank.fork()
    assert (fork._contents.changed, fork._contents.added) == ({}, {})
    assert fork.list() == bank.list() == before
    assert fork.add("new") == bank.add("new") == "m102"
    assert [event.after.value for event in fork.history("m7")] == ["item 5", "changed"]


VALUES = st.sampled_from(
    ["Ann is a nurse", "Ann is a pilot", "Bob has a dog", "", "the dog of Ann", "naïve 名前", "\ud800"]
)
NAMESPACES = st.sampled_from(["", "Ann", "Bob"])
CANDIDATES = st.builds(
    Candidate,
    VALUES,
    st.sampled_from(["", "pet"]),
    sources=st.lists(VALUES, max_size=2).map(tuple),
    namespace=NAMESPACES,
)
IDS = st.sampled_from(["x", *(f"m{number}" for number in range(1, 12))])


def operations_on(ids):
    return st.one_of(
        st.builds(Update, ids, VALUES, st.sampled_from([None, "job"]), time=st.sampled_from([None, "June"])),
        st.builds(Delete, ids),
        st.builds(Keep, ids),
    )


@st.composite
def operation_lists(draw, there):
    """Half of them operations on different items that are there, half any."""
    anything = st.one_of(
        st.builds(Add, CANDIDATES),
        operations_on(IDS),
        st.builds(Invalid, VALUES, st.just("malformed")),
        st.just(Keep()),
    )
    if draw(st.booleans()):
        return draw(st.lists(anything, max_size=6))
    chosen = draw(st.lists(st.sampled_from(there), max_size=5, unique=True)) if there else []
    return [draw(st.builds(Add, CANDIDATES)), *(draw(operations_on(st.just(id))) for id in chosen)]


class BankLaws(RuleBasedStateMachine):
    """Banks, their forks and what was saved of them, each beside a plain model: its items, its events."""

    @initialize(given=st.lists(st.sampled_from([ANN, BOB]), unique=True), count=st.sampled_from([0, 3, 20]))
    def begin(self, given, count):
        self.folder = tempfile.TemporaryDirectory()
        self.source = BankSource()
        items = [*given, *(MemoryItem(f"old{number}", "", f"text {number}") for number in range(count))]
        self.banks = [(self.source.open(items), list(items), [Event(None, item) for item in items])]

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def pick(self, data):
        return self.banks[data.draw(st.integers(0, len(self.banks) - 1))]

    @rule(data=st.data(), candidates=st.lists(CANDIDATES, max_size=9))
    def add(self, data, candidates):
        bank, items, events = self.pick(data)
        used = {event.id for event in events}
        ids = [bank.add(candidate) for candidate in candidates]
        assert len(set(ids)) == len(candidates) and not used & set(ids)
        for id, candidate in zip(ids, candidates):
            items.append(bank.get(id))
            events.append(Event(None, bank.get(id)))
            assert (items[-1].value, items[-1].namespace) == (candidate.value, candidate.namespace)

    @rule(data=st.data())
    def apply(self, data):
        bank, items, events = self.pick(data)
        there = {item.id for item in items}
        operations = data.draw(operation_lists([item.id for item in items]))
        ids = [one.id for one in operations if not isinstance(one, Add | Invalid) and one.id is not None]
        fine = set(ids) <= there and len(set(ids)) == len(ids)
        fine = fine and not any(isinstance(one, Invalid) for one in operations)
        report = bank.apply(operations)
        assert report.committed == fine
        assert len(report.outcomes) == len(operations)
        assert ("invalid" in [one.status for one in report.outcomes]) == (not fine)
        if not fine:
            assert "applied" not in [one.status for one in report.outcomes]
            return
        for operation, outcome in zip(operations, report.outcomes):
            assert outcome.status == ("noop" if isinstance(operation, Keep) else "applied")
            before = next((item for item in items if item.id == outcome.id), None)
            after = bank.get(outcome.id) if outcome.id is not None else None
            if isinstance(operation, Add):
                items.append(after)
            elif isinstance(operation, Update):
                assert (after.value, after.version) == (operation.value, before.version + 1)
                items[items.index(before)] = after
            elif isinstance(operation, Delete):
                items.remove(before)
            if not isinstance(operation, Keep):
                events.append(Event(before, after))

    @rule(data=st.data())
    def fork(self, data):
        bank, items, events = self.pick(data)
        self.banks.append((bank.fork(), list(items), list(events)))

    @rule(data=st.data(), k=st.integers(0, 5), mode=st.sampled_from(["dense", "bm25", "hybrid"]), query=VALUES)
    def search_as_a_bank_of_the_same_items_does(self, data, k, mode, query):
        bank, items, _ = self.pick(data)
        within = data.draw(st.none() | st.lists(NAMESPACES, max_size=2))
        plain = BankSource().open([item for item in items if within is None or item.namespace in within])
        assert bank.search(query, k, mode=mode, namespaces=within) == plain.search(query, k, mode=mode)

    @rule(data=st.data(), fresh=st.booleans())
    def save_and_load(self, data, fresh):
        bank, items, events = self.pick(data)
        bank.save(Path(self.folder.name))
        source = BankSource() if fresh else self.source
        self.banks.append((source.load(Path(self.folder.name)), list(items), list(events)))

    @invariant()
    def nothing_is_lost_or_twice_or_leaks(self):
        for bank, items, events in getattr(self, "banks", ()):
            assert bank.list() == items
            assert len(bank) == len(items)
            assert list(bank._contents.events()) == events
            assert replayed(events) == items
            for id in {event.id for event in events}:
                assert bank.history(id) == [event for event in events if event.id == id]


BankLaws.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
test_any_sequence_of_operations_keeps_the_laws_of_a_bank = BankLaws.TestCase

"""Micro-batches are dealt to processes in rounds: all turns once, of like size, in as few rounds as possible."""

from __future__ import annotations

import pytest

from memfactory.policy.batch import TrainingTurn
from memfactory.policy.dealing import dealt


def turns(*lengths: int) -> list[TrainingTurn]:
    """Turns that share nothing, of so many fed tokens: a reply of one token is not fed."""
    return [
        TrainingTurn(tuple(range(1000 * n, 1000 * n + length)), (1,), 1.0, n, n, "answer")
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("packing", ["shared", "packed", "padded"])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_turn_is_dealt_once(packing, processes):
    lengths = [7, 30, 12, 9, 25, 3, 18]
    rounds = dealt(turns(*lengths), packing, 40, processes)
    assert {len(batches) for batches in rounds} == {processes}
    assert sorted(index for batches in rounds for batch in batches for index in batch) == list(range(7))


def test_the_turns_of_one_micro_batch_are_spread_over_all_processes():
    # 4 turns of 10 tokens fit a budget of 100; with 4 processes each gets one, and with 2 each gets two.
    assert [sorted(map(len, batches)) for batches in dealt(turns(10, 10, 10, 10), "packed", 100, 4)] == [[1, 1, 1, 1]]
    assert [sorted(map(len, batches)) for batches in dealt(turns(10, 10, 10, 10), "packed", 100, 2)] == [[2, 2]]


def test_a_process_is_left_without_a_turn_only_where_there_are_too_few():
    assert dealt(turns(5, 9), "packed", 100, 3) == [[[1], [0], []]]
    assert dealt([], "packed", 100, 3) == []


def test_more_rounds_are_not_taken_than_the_budget_needs():
    # Two of six turns of 30 fit a budget of 60: three micro-batches, so two rounds of two processes. A smaller budget
    # would hold one turn each, which were three rounds.
    rounds = dealt(turns(30, 30, 30, 30, 30, 30), "packed", 60, 2)
    assert [[len(batch) for batch in batches] for batches in rounds] == [[2, 2], [2, 0]]

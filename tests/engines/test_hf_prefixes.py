"""What is kept of prompts: who shares a beginning with whom, and what is dropped first."""

import gc
import weakref

from memfactory.engines.hf.prefix_cache import LEAST_SHARED, Prefixes

IDS = tuple(range(LEAST_SHARED))


def test_prefixes_of_the_least_length_are_shared():
    kept = Prefixes()
    first = kept.hold((*IDS, 100))
    short = kept.hold((*IDS[:-1], 101))
    assert short.parent is None and kept.tokens == LEAST_SHARED + 1 + LEAST_SHARED
    second = kept.hold((*IDS, 102))
    assert second.parent is first.parent and second.parent.tokens == IDS
    assert (first.tokens, second.tokens) == ((100,), (102,))
    assert kept.tokens == kept.held == LEAST_SHARED + 1 + LEAST_SHARED + 1
    assert kept.hold(()) is None


def test_what_one_more_prompt_costs_is_what_nobody_holds_of_it():
    kept = Prefixes()
    assert kept.cost((*IDS, 100)) == LEAST_SHARED + 1
    end = kept.hold((*IDS, 100))
    # Known and held; two more tokens; one token fewer, which is less than the least, so it would be repeated.
    assert [kept.cost(ids) for ids in [(*IDS, 100), (*IDS, 100, 101, 102), IDS, IDS[:-1]]] == [
        0,
        2,
        0,
        LEAST_SHARED - 1,
    ]
    kept.release(end)
    assert (kept.tokens, kept.held) == (LEAST_SHARED + 1, 0)
    # It is known still, and would be held again.
    assert [kept.cost(ids) for ids in [(*IDS, 100), (*IDS, 100, 101), IDS]] == [LEAST_SHARED + 1, LEAST_SHARED + 2, 32]


def test_the_least_recently_used_prefix_is_evicted_first():
    kept = Prefixes()
    ends = [kept.hold((*IDS, number)) for number in range(100, 104)]
    for index in (2, 0, 3):
        kept.release(ends[index])
    assert kept.tokens == LEAST_SHARED + 4
    kept.evict(LEAST_SHARED + 3)
    assert [prefix.tokens for prefix in kept.all()] == [IDS, (100,), (101,), (103,)]
    kept.evict(0)
    assert [prefix.tokens for prefix in kept.all()] == [IDS, (101,)]
    kept.release(ends[1])
    kept.evict(1)
    assert list(kept.all()) == [] and kept.tokens == kept.held == 0


def test_keys_and_values_are_free_at_once_when_all_is_dropped():
    prefixes = Prefixes()
    prefixes.hold(tuple(range(80)))
    prefixes.hold((*range(40), *range(100, 140)))
    kept = [weakref.ref(prefix) for prefix in prefixes.all()]
    assert len(kept) == 3
    gc.disable()
    try:
        prefixes.clear()
        assert [reference() for reference in kept] == [None] * 3
    finally:
        gc.enable()

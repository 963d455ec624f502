"""Turns as rows: every turn can be read back, each state lies before its token, and the budget is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.policy.batch import TrainingTurn
from memfactory.policy.layout import MIN_SHARED, Layout, input_ids_of, lay_out, micro_batches

PAD = 99
COMMON = tuple(range(100, 100 + MIN_SHARED))


def turn(prompt_ids: tuple[int, ...], reply_ids: tuple[int, ...]) -> TrainingTurn:
    return TrainingTurn(prompt_ids, reply_ids, 1.0, 0, 0, "answer")


# Long equal beginnings and short ones, so that turns share more than MIN_SHARED tokens, or less, or all they have.
pieces = st.sampled_from([(1,), (2,), (1, 2, 1), COMMON, (*COMMON, *COMMON)])
ids = st.lists(pieces, min_size=1, max_size=3).map(lambda some: tuple(token for piece in some for token in piece))
turn_lists = st.lists(st.builds(turn, ids, ids), min_size=1, max_size=8)
packings = st.sampled_from(["padded", "packed", "shared"])


def tokens(layout: Layout) -> int:
    """Tokens fed, padding included."""
    return layout.input_ids.numel()


def seen_by(layout: Layout, place: int) -> list[int]:
    """The places that the token at `place` of the flattened rows attends to, in order of their positions."""
    width = layout.input_ids.shape[1]
    if layout.forest is None:
        return list(range(place - place % width, place + 1))
    (segment,) = [s for s in layout.forest.segments if s[0] <= place < s[1]]
    seen = list(range(segment[0], place + 1))
    for (first, end), known in layout.forest.branches:
        if first <= place < end:
            seen += range(*known)
    positions = layout.position_ids[0].tolist()
    return sorted(seen, key=positions.__getitem__)


@given(turn_lists, packings)
def test_each_source_state_has_seen_exactly_the_tokens_before_it(turns, packing):
    layout = lay_out(turns, packing, PAD)
    fed = layout.input_ids.flatten().tolist()
    sources = iter(layout.sources.tolist())
    for one in turns:
        whole = one.prompt_ids + one.reply_ids
        for at in range(len(one.prompt_ids), len(whole)):
            seen = seen_by(layout, next(sources))
            assert [fed[place] for place in seen] == list(whole[:at])
            if layout.position_ids is not None:
                assert layout.position_ids[0, seen].tolist() == list(range(at))
    assert next(sources, None) is None


@given(turn_lists)
def test_packing_feeds_no_padding_and_sharing_no_more_than_packing(turns):
    padded, packed, shared = (lay_out(turns, packing, PAD) for packing in ("padded", "packed", "shared"))
    assert tokens(packed) == sum(one.length - 1 for one in turns) <= tokens(padded)
    assert tokens(shared) <= tokens(packed)
    assert PAD not in shared.input_ids and PAD not in packed.input_ids
    for layout in (packed, shared):
        assert [place for segment in layout.forest.segments for place in range(*segment)] == list(range(tokens(layout)))


@given(turn_lists, packings, st.integers(1, 200))
def test_every_turn_is_in_one_batch_within_the_budget(turns, packing, budget):
    batches = micro_batches(turns, packing, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(turns)))
    for batch in batches:
        assert len(batch) == 1 or tokens(lay_out([turns[index] for index in batch], packing, PAD)) <= budget


def test_a_shared_prefix_is_fed_once_and_the_last_token_never():
    turns = [turn((*COMMON, 7), (1, 2, 3)), turn((5,), (6,)), turn((*COMMON, 7), (1, 9))]
    layout = lay_out(turns, "shared", PAD)
    # In order of their ids: 5 alone; then the beginning, 7 and the reply token 1, which the third turn ends with; 2.
    assert layout.input_ids.tolist() == [[5, *COMMON, 7, 1, 2]]
    assert layout.position_ids.tolist() == [[0, *range(MIN_SHARED + 3)]]
    seven = 1 + MIN_SHARED
    assert layout.sources.tolist() == [seven, seven + 1, seven + 2, 0, seven, seven + 1]


def test_padded_rows_are_filled_on_the_right():
    layout = lay_out([turn((1, 2), (3, 4, 5)), turn((6,), (7,))], "padded", 9)
    assert layout.input_ids.tolist() == [[1, 2, 3, 4], [6, 9, 9, 9]]
    assert layout.sources.tolist() == [1, 2, 3, 4]
    assert layout.position_ids is None and layout.forest is None


def alone(length: int, first: int) -> TrainingTurn:
    """A turn that is fed as `length` tokens and shares nothing with those of another `first`."""
    return turn((first,) * length, (1,))


def test_padded_micro_batches_hold_like_lengths_longest_first():
    def batches(lengths, budget):
        return micro_batches([alone(length, length) for length in lengths], "padded", budget)

    # 9 alone fills more than half of 12; 5 and 5 make 10; 2, 2 and 1 take 6.
    assert batches([2, 9, 5, 2, 5, 1], 12) == [[1], [2, 4], [0, 3, 5]]
    # A turn longer than the budget goes alone, and the budget is met exactly where it can be.
    assert batches([20, 6, 6], 12) == [[0], [1, 2]]
    assert batches([], 12) == []


def test_packed_micro_batches_fill_each_other_up_largest_first():
    # 9 leaves room for 2 and 1; 5, 5 and 2 fill twelve as well.
    assert micro_batches([alone(length, 1) for length in (2, 9, 5, 2, 5, 1)], "packed", 12) == [[1, 0, 5], [2, 4, 3]]


def test_trees_stay_together_until_the_budget_is_full():
    common = COMMON * 4
    turns = [turn((*common, n), (1,)) for n in (3, 5, 7)] + [alone(20, 2)]
    # Each further turn counts as MIN_SHARED tokens at most, so two fit beside the first, or one.
    length = len(common) + 1
    assert micro_batches(turns, "shared", length + 2 * MIN_SHARED) == [[0, 1, 2], [3]]
    assert micro_batches(turns, "shared", length + MIN_SHARED) == [[0, 1], [2], [3]]
    # Trees that are small enough fill each other up.
    assert micro_batches(turns, "shared", length + 2 * MIN_SHARED + 20) == [[0, 1, 2, 3]]


def test_what_is_fed_of_a_turn_leaves_out_its_last_token():
    assert input_ids_of(turn((1, 2), (3, 4))) == (1, 2, 3)


@pytest.mark.parametrize("below", [0, 1])
def test_a_beginning_that_is_too_short_is_not_shared(below):
    common = COMMON[: MIN_SHARED - below]
    shared = lay_out([turn((*common, n), (1,)) for n in (3, 5)], "shared", PAD)
    assert tokens(shared) == (2 * MIN_SHARED if below else MIN_SHARED + 2)

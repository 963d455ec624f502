"""Sequences packed as trees: each can be read from its path, and nothing that could stand once stands twice."""

from hypothesis import given
from hypothesis import strategies as st

from memfactory.model.prefix_tree import pack, shared_length

sequences = st.lists(st.lists(st.integers(0, 2), max_size=9).map(tuple), max_size=12)


def test_a_common_beginning_stands_once_and_its_parts_branch_off():
    # 1 2 3 is shared by three, 1 2 3 4 5 by two of them, and 9 by none.
    packed = pack([(1, 2, 3, 4, 5, 6), (9,), (1, 2, 3, 7), (1, 2, 3, 4, 5)], 2)
    assert packed.tokens == (1, 2, 3, 4, 5, 6, 7, 9)
    assert packed.positions == (0, 1, 2, 3, 4, 5, 3, 0)
    assert packed.segments == ((0, 3), (3, 5), (5, 6), (6, 7), (7, 8))
    assert packed.parents == (None, 0, 1, 0, None)
    assert packed.paths == ((0, 1, 2), (4,), (0, 3), (0, 1))
    assert packed.branches() == (((3, 7), (0, 3)), ((5, 6), (3, 5)))


def test_short_prefixes_are_repeated_but_equal_sequences_never():
    packed = pack([(1, 2, 3), (1, 4), (1, 4), (1, 4, 6), (5,), (5,), ()], 3)
    assert packed.tokens == (1, 2, 3, 1, 4, 1, 4, 6, 5)
    assert packed.paths == ((0,), (1,), (1,), (2,), (3,), (3,), ())


@given(sequences, st.integers(1, 4))
def test_every_sequence_is_read_along_its_path(given_sequences, minimum):
    packed = pack(given_sequences, minimum)
    for sequence, path in zip(given_sequences, packed.paths):
        places = [place for index in path for place in range(*packed.segments[index])]
        assert tuple(packed.tokens[place] for place in places) == sequence
        assert [packed.positions[place] for place in places] == list(range(len(sequence)))
        assert [packed.parents[index] for index in path] == [None, *path[:-1]][: len(path)]
    assert [place for segment in packed.segments for place in range(*segment)] == list(range(len(packed.tokens)))


@given(sequences, st.integers(1, 4))
def test_who_attends_to_whom_is_exactly_the_paths(given_sequences, minimum):
    packed = pack(given_sequences, minimum)
    seen = {
        (index, known)
        for path in packed.paths
        for number, index in enumerate(path)
        for known in path[:number]
    }  # fmt: skip
    branches = {
        (index, packed.segments.index(known))
        for (first, end), known in packed.branches()
        for index, (start, _) in enumerate(packed.segments)
        if first <= start < end
    }
    assert branches == seen


@given(sequences)
def test_with_a_minimum_of_one_no_token_stands_twice(given_sequences):
    beginnings = {sequence[: length + 1] for sequence in given_sequences for length in range(len(sequence))}
    assert len(pack(given_sequences, 1).tokens) == len(beginnings)


@given(st.lists(st.integers(0, 1), max_size=6), st.lists(st.integers(0, 1), max_size=6))
def test_the_shared_length_counts_the_equal_beginning(one, other):
    length = shared_length(one, other)
    assert one[:length] == other[:length]
    assert length in (len(one), len(other)) or one[length] != other[length]

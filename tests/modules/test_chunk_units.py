"""Chunks that end with sentences or paragraphs: joined they are the text, and none is too long."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.errors import DataError
from memfactory.model.codec import FileCodec
from memfactory.modules.recurrent_memory import RecurrentMemoryModule, RecurrentMemoryOptions
from memfactory.text import chunk_cuts, sentences, unit_cuts, unit_ends

CODEC = FileCodec("tiny")
PARTS = st.sampled_from(
    [
        "Ada met Dr. Novak.",
        " ",
        "\n\n",
        "\n",
        "Is it 3.5 km?",
        "No!",
        "東京は日本。",
        "the tower",
        "🙂",
        "...",
        "e.g. this",
    ]
)
TEXTS = st.lists(st.one_of(PARTS, st.text(max_size=6)), max_size=40).map("".join)
UNITS = st.sampled_from(["sentences", "paragraphs"])


def module(**options):
    return RecurrentMemoryModule(RecurrentMemoryOptions(**options), CODEC)


def overlapping(spans, start, end):
    """The tokens that lie in [start, end), in part or whole; those that share a character with the one before not."""
    distinct = {span[0] for span in spans if span[0] < end and span[1] > start}
    return len(distinct)


@given(text=TEXTS, size=st.integers(1, 12), unit=UNITS)
@settings(max_examples=300, deadline=None)
def test_the_chunks_joined_are_the_text_and_none_is_too_long(text, size, unit):
    spans, ends = CODEC.offsets(text), unit_ends(text, unit)
    cuts, before = unit_cuts(text, [spans], size, ends)
    assert cuts[0] == 0 and cuts[-1] == len(text) and cuts == sorted(set(cuts))
    assert before[-1] == len(spans) and before == sorted(before)
    assert all(overlapping(spans, start, end) <= size for start, end in pairwise(cuts))
    # A cut that is no end of a unit is one of a unit that is too long.
    for start, end in pairwise(cuts):
        assert end in ends or not any(start < place <= end for place in ends)


@given(text=TEXTS, size=st.integers(1, 12), unit=UNITS, most=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_no_more_than_max_chunks_are_read_and_every_token_is_counted(text, size, unit, most):
    reader = module(chunk_tokens=size, cut=unit, max_chunks=most)
    chunks, reading = list(reader.chunks(text, "t")), reader.reading(text)
    assert len(chunks) <= most
    assert reading.read + reading.dropped == len(CODEC.offsets(text))
    assert (reading.dropped == 0) == ("".join(chunks) == text)


def test_a_chunk_ends_with_the_last_sentence_that_fits():
    text = "Ada lives in Oslo. Boris keeps a heron. Chen paints."
    # tiny: one token a word or mark: 5, 5 and 3.
    assert [len(CODEC.offsets(sentence)) for sentence in sentences(text)] == [5, 5, 3]
    assert list(module(chunk_tokens=9, cut="sentences").chunks(text, "t")) == [
        "Ada lives in Oslo. ",
        "Boris keeps a heron. Chen paints."
    ]  # fmt: skip
    # A sentence of 5 tokens does not fit into 4.
    assert list(module(chunk_tokens=4, cut="sentences").chunks("Ada lives in Oslo.", "t")) == ["Ada lives in Oslo", "."]


def test_a_chunk_ends_with_the_last_paragraph_that_fits():
    # 10, 5 and 4 tokens: the blank lines belong to the full stops.
    text = "Ada lives in Oslo. Chen paints in teal.\n\nBoris keeps a heron.\n\nIt was late."
    chunks = list(module(chunk_tokens=14, cut="paragraphs").chunks(text, "t"))
    assert chunks == ["Ada lives in Oslo. Chen paints in teal.\n\n", "Boris keeps a heron.\n\nIt was late."]


def test_center_truncation_drops_whole_chunks_of_the_middle():
    text = "Snow fell again. Nobody spoke then. It was late. Nobody spoke then. It was late."
    reader = module(chunk_tokens=5, cut="sentences", max_chunks=3)
    assert list(reader.chunks(text, "t")) == ["Snow fell again. ", "Nobody spoke then. ", "It was late."]
    # Each sentence has four tokens.
    assert (reader.reading(text).read, reader.reading(text).dropped) == (12, 8)


def test_a_text_of_too_many_chunks_stops_under_truncate_error():
    reader = module(chunk_tokens=5, cut="sentences", max_chunks=2, truncate="error")
    with pytest.raises(DataError, match="the context of task 't' has 3 chunks of sentences, but max_chunks is 2"):
        reader.chunks("Snow fell again. Nobody spoke then. It was late.", "t")


def test_cut_tokens_is_the_default_and_as_before():
    text = "Ada lives in Oslo. Boris keeps a heron. " * 9
    cuts, _ = chunk_cuts(text, [CODEC.offsets(text)], 7)
    chunks = [text[start:end] for start, end in pairwise(cuts)]
    assert list(module(chunk_tokens=7).chunks(text, "t")) == chunks
    assert list(module(chunk_tokens=7, cut="tokens").chunks(text, "t")) == chunks


def test_abbreviations_initials_and_numbers_end_no_sentence():
    text = (
        'Mr. Ito met J. R. Tolkien in the U.S. in 1990. "No." he said. It rose 3.5 percent, e.g. here. 東京です。はい。'
    )
    assert sentences(text) == [
        "Mr. Ito met J. R. Tolkien in the U.S. in 1990.",
        '"No." he said.',
        "It rose 3.5 percent, e.g. here.",
        "東京です。",
        "はい。",
    ]


@pytest.mark.parametrize("text", [" " * 200_000 + "x", "." * 200_000 + "x", "\n" * 200_000 + "x"])
def test_a_long_run_of_blanks_or_dots_costs_no_more_than_words(text):
    start = time.process_time()
    ends = unit_ends(text, "sentences")
    assert time.process_time() - start < 2
    assert ends == ([200_000, 200_001] if text[0] == "\n" else [200_001])

"""How items are found: cosine by numpy and by faiss alike, BM25, and both; filters, ties and edges."""

import os
from math import log, sqrt
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import retrieval
from memfactory.memory.bank import BankSource
from memfactory.memory.bm25 import Postings
from memfactory.memory.index import VectorIndex, exact_scores
from memfactory.memory.options import LexicalEmbedderConfig, MemoryConfig
from memfactory.memory.search import fused
from memfactory.memory.words import stem, terms, words
from memfactory.types import MemoryItem

REAL = os.environ.get("MEMFACTORY_DATA")
MODES = ["dense", "bm25", "hybrid"]


def items(*texts, namespace=""):
    return [MemoryItem(f"i{number}", "", text, namespace=namespace) for number, text in enumerate(texts)]


def found(bank, query, k=10, **options):
    return [one.item.id for one in bank.search(query, k, **options)]


def brute_force(vectors, query, k, allowed):
    """Every score on its own, sorted by score and then by place."""
    scores = {place: float(exact_scores(vectors[place : place + 1], query)[0]) for place in allowed}
    return sorted(scores.items(), key=lambda one: (-one[1], one[0]))[:k]


# Few different values in few dimensions, so that many inner products are equal or nearly so.
COORDINATES = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1 / 3, 1e-7])


@st.composite
def searches(draw):
    dimensions = draw(st.integers(1, 5))
    row = st.lists(COORDINATES, min_size=dimensions, max_size=dimensions)
    rows = numpy.array(draw(st.lists(row, min_size=1, max_size=60)), numpy.float32)
    rows = rows[draw(st.permutations(range(len(rows))))]
    query = numpy.array(draw(row), numpy.float32)
    lengths = numpy.linalg.norm(rows, axis=1, keepdims=True)
    rows = (rows / numpy.where(lengths > 0, lengths, 1)).astype(numpy.float32)
    allowed = draw(st.none() | st.lists(st.integers(0, len(rows) - 1), unique=True).map(sorted))
    return rows, query / max(numpy.linalg.norm(query), 1), draw(st.integers(0, 70)), allowed


@settings(max_examples=300, deadline=None)
@given(searches())
def test_numpy_and_faiss_find_what_brute_force_finds_with_equal_scores_in_equal_order(search):
    rows, query, k, allowed = search
    chosen = None if allowed is None else numpy.array(allowed, numpy.int64)
    expected = brute_force(rows, query, k, range(len(rows)) if allowed is None else allowed)
    assert VectorIndex(rows, "numpy").search(query, k, chosen) == expected
    assert VectorIndex(rows, "faiss").search(query, k, chosen) == expected


@pytest.mark.parametrize("seed", range(3))
def test_faiss_and_numpy_agree_on_long_vectors_of_which_many_are_equal(seed):
    generator = numpy.random.default_rng(seed)
    rows = generator.standard_normal((50, 384)).astype(numpy.float32)
    rows = rows[generator.integers(0, 50, 3000)]
    # The same directions but for rounding: their true order is below what float32 sums can tell.
    rows[1000:2000] *= 1 + 1e-7 * generator.standard_normal((1000, 1)).astype(numpy.float32)
    rows /= numpy.linalg.norm(rows, axis=1, keepdims=True)
    query = rows[5]
    expected = brute_force(rows, query, 200, range(3000))
    assert VectorIndex(rows, "numpy").search(query, 200) == expected
    assert VectorIndex(rows, "faiss").search(query, 200) == expected


@pytest.mark.parametrize("index", ["numpy", "faiss"])
def test_banks_find_alike_whatever_searches_their_vectors_after_updates_and_deletions(index):
    source = BankSource(MemoryConfig(index=index))
    bank = source.open(items("Ann has a dog", "Bob has a dog", "Cat naps", "Ann has a dog"))
    # Two texts are equal: the earlier item comes first.
    assert found(bank, "Ann's dog", 3) == ["i0", "i3", "i1"]
    fork = bank.fork()
    fork.update("i0", "Ann has a parrot")
    fork.delete("i3")
    fork.add("the dog of Ann")
    assert found(fork, "Ann's dog", 1) == ["m1"]
    assert set(found(fork, "dog", 99)) == {"i0", "i1", "i2", "m1"}
    assert found(bank, "Ann's dog", 3) == ["i0", "i3", "i1"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", ["numpy", "faiss"])
def test_a_namespace_is_searched_as_if_there_were_no_other(mode, index):
    source = BankSource(MemoryConfig(index=index))
    ann = [MemoryItem(f"a{number}", "", f"dog number {number}", namespace="Ann") for number in range(5)]
    bob = [MemoryItem(f"b{number}", "", "dog dog dog", namespace="Bob") for number in range(40)]
    both, alone = source.open([*bob[:20], *ann, *bob[20:]]), source.open(ann)
    # Those of Bob match better, yet all five of Ann are found, with the scores that they have alone.
    assert both.search("dog", 5, mode=mode, namespaces=["Ann"]) == alone.search("dog", 5, mode=mode)
    assert len(both.search("dog", 99, mode=mode, namespaces=["Ann", "Bob", "Ann"])) == 45
    assert both.search("dog", 5, mode=mode, namespaces=["nobody"]) == []
    assert both.search("dog", 5, mode=mode, namespaces=[]) == []


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_found_in_an_empty_bank_or_for_no_places(mode):
    bank = BankSource().open()
    assert bank.search("dog", 5, mode=mode) == []
    bank.add("a dog")
    assert bank.search("dog", 0, mode=mode) == []
    with pytest.raises(ValueError, match="k must not be negative, got -1"):
        bank.search("dog", -1, mode=mode)


def test_an_empty_text_matches_nothing_and_an_empty_question_all_alike():
    bank = BankSource().open(items("", "a dog", "  "))
    scores = {one.item.id: one.score for one in bank.search("a dog", 3)}
    assert (scores["i0"], scores["i2"]) == (0.0, 0.0)
    assert scores["i1"] > 0
    assert [(one.item.id, one.score) for one in bank.search("", 3)] == [("i0", 0.0), ("i1", 0.0), ("i2", 0.0)]
    assert found(bank, "a dog", mode="bm25") == ["i1"]
    assert bank.search("?!", 3, mode="bm25") == []


def test_a_least_score_cuts_off_what_matches_worse():
    bank = BankSource().open(items("a dog", "a cat", "dog and cat"))
    scores = {one.item.id: one.score for one in bank.search("dog", 3)}
    assert scores["i0"] > scores["i2"] > scores["i1"]
    assert found(bank, "dog", min_score=scores["i0"]) == ["i0"]
    assert found(bank, "dog", min_score=scores["i2"]) == ["i0", "i2"]
    assert found(bank, "dog", min_score=1.1) == []


def test_what_is_searched_is_the_key_and_the_value():
    bank = BankSource().open([MemoryItem("i", "birthday", "on the 4th of May"), MemoryItem("j", "", "Tuesday")])
    assert found(bank, "birthday", 1, mode="bm25") == ["i"]
    expected = exact_scores(bank.embed(["birthday: on the 4th of May"]), bank.embed_query("in May"))
    assert bank.search("in May", 1)[0].score == expected[0]


def test_bm25_is_okapis_formula():
    # Lengths without stop words: "Ann adopted dogs" 3, "dog dog Bob" 3, "nap" 1; the average is 7/3.
    postings = Postings(["Ann adopted the dogs", "dog dog Bob", "a nap"])
    scores, _ = postings.scores("Which dog did Ann adopt?", None, [])

    def part(holding, often, length):
        rarity = log(1 + (3 - holding + 0.5) / (holding + 0.5))
        return rarity * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * length / (7 / 3)))

    # "dog" is in two texts, "ann" and "adopt" in one each.
    assert scores[0] == pytest.approx(part(2, 1, 3) + 2 * part(1, 1, 3), abs=1e-12)
    assert scores[1] == pytest.approx(part(2, 2, 3), abs=1e-12)
    assert scores[2] == 0


def test_bm25_finds_only_items_that_share_a_word_and_counts_those_that_are_there_now():
    source = BankSource()
    bank = source.open(items("dog", "dog walk", "cat"))
    assert found(bank, "dogs walked", mode="bm25") == ["i1", "i0"]
    fork = bank.fork()
    fork.delete("i1")
    fork.update("i2", "the dog walks the cat")
    now = source.open(fork.list())
    assert fork.search("dogs walked", 5, mode="bm25") == now.search("dogs walked", 5, mode="bm25")
    # Versions are kept by `open`, so items and scores are the same.
    assert found(fork, "dogs walked", mode="bm25") == ["i2", "i0"]


def test_hybrid_adds_up_the_inverse_ranks_of_both():
    first, second = [(7, 0.9), (3, 0.8), (5, 0.1)], [(3, 4.0), (9, 2.0)]
    # 3: 1/62 + 1/61; 7: 1/61; 9: 1/62; 5: 1/63
    assert fused([first, second], 3) == [(3, 1 / 62 + 1 / 61), (7, 1 / 61), (9, 1 / 62)]
    assert fused([[(4, 1.0)], [(2, 1.0)]], 2) == [(2, 1 / 61), (4, 1 / 61)]


def test_hybrid_search_fuses_what_dense_and_bm25_rank():
    bank = BankSource().open(items("the dog walks", "dogs", "a cat", "nothing of it"))
    dense, bm25 = ([one.item.id for one in bank.search("dog walk", 100, mode=mode)] for mode in ("dense", "bm25"))
    scores = {id: 1 / (61 + dense.index(id)) + (1 / (61 + bm25.index(id)) if id in bm25 else 0) for id in dense}
    assert {one.item.id: one.score for one in bank.search("dog walk", 100, mode="hybrid")} == pytest.approx(scores)


def test_the_config_says_how_items_are_found_where_nobody_else_does():
    bank = BankSource(MemoryConfig(search="bm25")).open(items("dog", "cat"))
    assert found(bank, "dog") == ["i0"]
    assert found(bank, "dog", mode="dense") == ["i0", "i1"]


def test_words_are_lower_case_and_ideographs_stand_alone():
    assert words("Ann's DOG, aged 3_4: naïve 名前") == ["ann", "s", "dog", "aged", "3", "4", "naïve", "名", "前"]


def test_endings_are_cut_alike():
    for forms in ("adopt adopts adopted adopting", "run runs running", "bake bakes baked baking", "story stories"):
        assert len({stem(word) for word in forms.split()}) == 1, forms
    # Short words, double s, u before s, and what is no ending stay.
    assert [stem(word) for word in ("was", "glass", "status", "sing", "bus")] == [
        "was",
        "glass",
        "status",
        "sing",
        "bus",
    ]


def test_stop_words_count_only_where_there_are_no_others():
    assert terms("What did Ann adopt?") == ["ann", "adopt"]
    assert terms("Who are you?") == ["who", "are", "you"]


def test_a_unit_vector_scores_its_cosine():
    source = BankSource(MemoryConfig(embedder=LexicalEmbedderConfig(ngrams=(), dimensions=4096, padding=0)))
    bank = source.open(items("dog cat", "dog dog bird"))
    # Words alone: (1, 1) and (1 + ln 2, 1) against (1, 0).
    twice = 1 + log(2)
    scores = [one.score for one in bank.search("dog", 2)]
    assert scores == pytest.approx([twice / sqrt(twice**2 + 1), 1 / sqrt(2)], abs=1e-6)


@pytest.mark.skipif(not REAL, reason="MEMFACTORY_DATA names no folder with the real LoCoMo")
def test_evidence_is_found_on_locomo_as_the_benchmark_says():
    found, _ = retrieval.recalls(Path(REAL) / "locomo" / "locomo10.json", "train", MemoryConfig())
    # Of the 152 questions of conv-26 two have no evidence. At 10: dense, BM25, hybrid.
    assert len(found) == 150
    assert numpy.mean([row for _, row in found], axis=0)[1::3] == pytest.approx([0.483, 0.607, 0.554], abs=5e-4)

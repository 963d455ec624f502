"""The metrics of LoCoMo, mem0 and LongMemEval, against numbers derived by hand from their published rules."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem import PorterStemmer
from nltk.tokenize import word_tokenize
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from memfactory.engines.scripted import ScriptedEngine
from memfactory.envs.rewards.locomo import category_of, stemmed_f1
from memfactory.envs.rewards.mem0 import bleu1, tokens
from memfactory.envs.rewards.sentence_words import sentences
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.types import MemoryItem, Task, frozen

METRICS = ("locomo_f1", "locomo_em", "mem0_f1", "mem0_em", "bleu1")


def episode(answer, *golds, category=None, **changes):
    meta = frozen({} if category is None else {"category": category})
    return Episode(Task("t", "Who?", golds, meta=meta, **changes), answer=answer)


def score(name, answer, *golds, category=None, **options):
    reward = REWARDS.get(name)(REWARDS.options(name)(**options), {})
    (only,) = reward.score([episode(answer, *golds, category=category)])
    return only


@pytest.mark.parametrize(
    ("answer", "gold", "category", "worth"),
    [
        ("7 May 2023", "7 May 2023", 2, 1),
        ("May 2023", "7 May 2023", 2, 0.8),  # 2 of 2 and 2 of 3 words: 2 * 2 / 5
        ("june", "7 May 2023", 2, 0),
        ("", "7 May 2023", 2, 0),
        (None, "7 May 2023", 2, 0),
        ("The cat and a dog", "cat, dog", 4, 1),  # articles, and, and commas do not count
        ("painting", "she paints", 4, 2 / 3),  # both stems are paint: 2 * 1 / 3
        ("new york new york", "new york", 4, 2 / 3),  # repetition counts: 2 * 2 / 6
        ("mental health", "mental-health", 4, 0),  # the hyphen vanishes: mentalhealth
        ("Bob's dog", "Bobs dog", 4, 1),  # so does the apostrophe
        ("the", "the", 4, 0),  # nothing is left of either
        # Lists: the parts of the gold answer "7 May 2023" (one) against "7 May" (0.8) and "2023" (0.5).
        ("7 May, 2023", "7 May 2023", 1, 0.8),
        # Gold parts "7 May" and "2023" against the whole: 2 * 2 / 5 = 0.8 and 2 * 1 / 4 = 0.5.
        ("7 May 2023", "7 May, 2023", 1, 0.65),
        ("7 May, 2023", "7 May 2023", 2, 1),  # only category 1 has lists
        ("hiking, reading, cooking", "cooking, hiking", 1, 1),
        ("hiking", "cooking, hiking", 1, 0.5),
        ("liberal", "liberal; she says so", 3, 1),
        ("liberal", "liberal; she says so", 4, 0.4),  # liberal, she, say, so: 2 * 1 / 5
        ("No information available.", "x", 5, 1),
        ("It is NOT MENTIONED in the conversation", "x", 5, 1),
        ("x", "x", 5, 0),
        (None, "x", 5, 0),
        ("7 May, 2023", "7 May 2023", "1", 0.8),
        ("7 May, 2023", "7 May 2023", None, 1),
        ("7 May, 2023", "7 May 2023", "multi-session", 1),
    ],
)
def test_locomo_f1_goes_by_the_question_s_category(answer, gold, category, worth):
    assert score("locomo_f1", answer, gold, category=category) == pytest.approx(worth, abs=1e-12)


def test_an_adversarial_question_needs_no_gold_answer_and_the_others_do():
    assert score("locomo_f1", "not mentioned", category=5) == 1
    assert score("locomo_f1", "x", category=4) is None
    assert all(score(name, "x") is None for name in METRICS)


@pytest.mark.parametrize(
    ("value", "category"), [(3, 3), ("3", 3), (3.0, 3), (True, None), (None, None), ("three", None), ("-3", None)]
)
def test_a_category_is_a_number_or_written_as_one(value, category):
    assert category_of(value) == category


@pytest.mark.parametrize(
    ("answer", "gold", "worth"),
    [
        ("York, New York", "new york", 1),  # sets: neither order nor repetition counts
        ("paints", "painting", 0),  # nothing is stemmed
        ("the cat", "cat", 1),
        ("mental health", "mental-health", 0),
        ("the", "a", 0),
        ("", "a", 0),
    ],
)
def test_locomo_em_compares_sets_of_words(answer, gold, worth):
    assert score("locomo_em", answer, gold) == worth


@pytest.mark.parametrize(
    ("answer", "gold", "worth"),
    [
        ("7 May, 2023.", "7 may 2023", 1),
        ("Rome!Paris?", "rome paris", 1),
        ("the cat", "cat", 2 / 3),  # articles count: 2 * 1 / 3
        ("new york new york", "new york", 1),  # repetition does not
        ("painting", "paints", 0),
        ("mental health", "mental-health", 0),
        ("7 May, 2023", "7 May 2023", 1),  # the same under every category
        ("", "cat", 0),
        ("...", "cat", 0),
        ("...", "!", 0),
    ],
)
@pytest.mark.parametrize("category", [1, 3, 4])
def test_mem0_f1_compares_sets_of_words_for_every_category_alike(answer, gold, worth, category):
    assert score("mem0_f1", answer, gold, category=category) == pytest.approx(worth, abs=1e-12)


def test_mem0_em_overlooks_case_and_outer_space_only():
    assert score("mem0_em", " Paris\n", "paris") == 1
    assert score("mem0_em", "Paris.", "paris") == score("mem0_em", " ", " x") == score("mem0_em", "", "x") == 0


@pytest.mark.parametrize(
    ("answer", "gold", "worth"),
    [
        ("7 May 2023", "7 may 2023", 1),
        ("May 2023", "7 May 2023", math.exp(1 - 3 / 2)),  # .606531: all precise, but 2 words for 3
        ("on 7 May 2023", "7 May 2023", 0.75),  # 3 of 4, and not too short
        ("june", "7 May 2023", 0),  # nltk stops before its smoothing, which would give .1 * exp(1 - 3)
        ("may may may", "7 may 2023", 1 / 3),  # each word counts as often as it is in the gold answer
        ("7 May, 2023", "7 May 2023", 0.75),  # the comma is a token
        ("", "7 May 2023", 0),
    ],
)
def test_bleu_1_is_clipped_precision_with_a_penalty_for_brevity(answer, gold, worth):
    assert score("bleu1", answer, gold) == pytest.approx(worth, abs=1e-12)


WORDS = st.lists(st.sampled_from("a b c may may, i'm don't 2023 5.30 u.s. (x) mental-health".split()), max_size=8)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_bleu_1_is_nltks_with_mem0s_weights_and_smoothing(said, wanted):
    first, second = tokens(" ".join(said)), tokens(" ".join(wanted))
    smooth = SmoothingFunction().method1
    theirs = sentence_bleu([second], first, weights=(1, 0, 0, 0), smoothing_function=smooth) if first else 0
    assert bleu1(first, second) == pytest.approx(float(theirs), abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(WORDS)
def test_the_tokens_of_one_sentence_are_nltks(said):
    text = " ".join(said)
    if len(sentences(text)) <= 1:
        assert tokens(text) == word_tokenize(text, preserve_line=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("i'm home. it rains", ["i'm home.", "it rains"]),
        ("at 5 p.m. today", ["at 5 p.m. today"]),
        ("mr. smith met j. doe", ["mr. smith met j. doe"]),
        ("so. what", ["so.", "what"]),
        ("version 2.5 is out", ["version 2.5 is out"]),
        ("", [""]),
    ],
)
def test_a_full_stop_ends_a_sentence_but_not_an_abbreviation(text, found):
    assert sentences(text) == found


def test_full_stops_within_an_answer_are_tokens_of_their_own():
    assert tokens("I'm home. It rains.") == ["i", "'m", "home", ".", "it", "rains", "."]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(METRICS), st.text(max_size=40), st.text(min_size=1, max_size=40), st.sampled_from([None, 1, 3, 5])
)
def test_any_text_is_worth_something_between_0_and_1(name, answer, gold, category):
    assert 0 <= score(name, answer, gold, category=category) <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("painting paints new york the running ran dogs".split()), max_size=6))
def test_f1_of_stems_is_symmetric_and_whole_for_equal_texts(said):
    text = " ".join(said)
    assert stemmed_f1(text, "new painting") == stemmed_f1("new painting", text)
    assert stemmed_f1(text, text) == float(any(word != "the" for word in said))


def test_stems_are_those_of_nltks_porter_stemmer_as_it_comes():
    # Its own extensions keep "dying" from becoming "dy"; Porter's original would.
    assert PorterStemmer().stem("dying") == "die"
    assert stemmed_f1("dying", "die") == 1


def test_the_best_gold_answer_counts():
    assert all(score(name, "cat", "dog", "cat") == 1 for name in METRICS)


def item(*sources):
    return MemoryItem("/".join(sources) or "none", "", "x", sources=sources)


def ranked(name, items, *evidence, **options):
    asked = episode("x", evidence=evidence)
    asked.retrieved = tuple(items)
    reward = REWARDS.get(name)(REWARDS.options(name)(**options), {})
    (only,) = reward.score([asked])
    return only


RANKING = [item("D1:1"), item("D2:5"), item(), item("D1:2", "D3:1"), item("D2:5"), item("D4:1")]


@pytest.mark.parametrize(
    ("evidence", "k", "any_", "all_", "ndcg"),
    [
        (["D1:1"], 1, 1, 1, 1),
        (["D2:5"], 1, 0, 0, 0),
        (["D2:5"], 2, 1, 1, 1),  # ranks 1 and 2 count alike
        (["D2:5", "D4:1"], 5, 1, 0, 0.5),  # 1 of the best 1 + 1
        (["D2:5", "D4:1"], 6, 1, 1, (1 + 1 / math.log2(6)) / 2),
        (["D1:2"], 4, 1, 1, 0.5),  # 1 / log2(4)
        (["D9:9"], 6, 0, 0, 0),
        # The best for 4 at k = 3 is 1 + 1 + 1 / log2(3), of which rank 1 and 2 are found.
        (["D1:1", "D2:5", "D9:1", "D9:2"], 3, 1, 0, 2 / (2 + 1 / math.log2(3))),
        # Two at rank 4: 2 * 1 / log2(4) of the best 1 + 1.
        (["D1:2", "D3:1"], 4, 1, 1, 0.5),
    ],
)
def test_evidence_is_ranked_by_turn(evidence, k, any_, all_, ndcg):
    assert ranked("evidence_any", RANKING, *evidence, k=k) == any_
    assert ranked("evidence_all", RANKING, *evidence, k=k) == all_
    assert ranked("evidence_ndcg", RANKING, *evidence, k=k) == pytest.approx(ndcg, abs=1e-12)


@pytest.mark.parametrize(
    ("evidence", "k", "any_", "all_", "ndcg"),
    [
        (["D1:9"], 1, 1, 1, 1),  # another turn of the session counts
        (["D3:9"], 2, 0, 0, 0),
        (["D3:9"], 3, 1, 1, 1 / math.log2(3)),  # the third session, although it is of the fourth item
        (["D4:1"], 3, 0, 0, 0),
        (["D4:1"], 4, 1, 1, 0.5),  # the fourth session is of the sixth item
        (["D1:1", "D1:2", "D2:2"], 2, 1, 1, 1),  # two turns of one session are one session
        (["D1:1", "D9:1"], 5, 1, 0, 0.5),
    ],
)
def test_evidence_is_ranked_by_session_until_k_sessions_are_found(evidence, k, any_, all_, ndcg):
    assert ranked("evidence_any", RANKING, *evidence, k=k, by="session") == any_
    assert ranked("evidence_all", RANKING, *evidence, k=k, by="session") == all_
    assert ranked("evidence_ndcg", RANKING, *evidence, k=k, by="session") == pytest.approx(ndcg, abs=1e-12)


def test_an_item_that_brings_more_than_the_best_ranking_counts_as_1():
    # Three pieces at rank 1 weigh 3; the best ranking weighs 1 + 1 + 1 / log2(3).
    assert ranked("evidence_ndcg", [item("D1:1", "D1:2", "D1:3")], "D1:1", "D1:2", "D1:3") == 1


@pytest.mark.parametrize("name", ["evidence_any", "evidence_all", "evidence_ndcg"])
def test_a_task_without_evidence_has_an_unknown_ranking_and_nothing_found_is_0(name):
    assert ranked(name, RANKING) is None
    assert ranked(name, [], "D1:1") == 0


def judged(name, reply, *episodes):
    engine = ScriptedEngine(reply, tokens=False)
    reward = REWARDS.get(name)(REWARDS.options(name)(), {"judge": engine})
    return reward.score(episodes)


@pytest.mark.parametrize(
    ("id", "kind", "phrase"),
    [
        ("q", "multi-session", "holds only a part"),
        ("q", "temporal-reasoning", "one too high or too low"),
        ("q", "knowledge-update", "earlier states"),
        ("q", "single-session-preference", "<description>"),
        ("q_abs", "temporal-reasoning", "<explanation>"),
        ("q_abs#2", "multi-session", "cannot be answered"),
        ("q", None, "<reference_answer>"),
    ],
)
def test_longmemevals_judge_goes_by_the_rule_of_the_question_s_type(id, kind, phrase):
    def reply(messages, sampling):
        said = messages[0].content
        assert "{" not in said and "Bikes?" in said and "three" in said and "3 bikes" in said
        return "Verdict: yes" if phrase in said else "Verdict: no"

    task = Task(id, "Bikes?", ("three",), meta=frozen({"question_type": kind}))
    assert judged("longmemeval_judge", reply, Episode(task, answer="3 bikes")) == [1.0]


def test_longmemevals_judge_keeps_the_order_of_mixed_questions():
    kinds = ("knowledge-update", "multi-session", "knowledge-update", "temporal-reasoning")
    episodes = [
        Episode(Task(f"q{n}", f"Question {n}?", ("x",), meta=frozen({"question_type": kind})), answer=f"answer {n}")
        for n, kind in enumerate(kinds)
    ]

    def reply(messages, sampling):
        return f"Verdict: {'yes' if 'answer 1' in messages[0].content or 'answer 2' in messages[0].content else 'no'}"

    assert judged("longmemeval_judge", reply, *episodes) == [0.0, 1.0, 1.0, 0.0]
    assert judged("longmemeval_judge", lambda messages, sampling: "perhaps", *episodes) == [None] * 4


def test_mem0s_judge_is_told_to_be_generous():
    reply = "Verdict: {}".format
    found = judged(
        "mem0_judge",
        lambda messages, sampling: reply("yes" if "Be generous" in messages[0].content else "no"),
        episode("in May", "7 May 2023"),
    )
    assert found == [1.0]

"""Rewards by rule, against numbers derived by hand from the rules of MemAgent, SQuAD, HotpotQA and RULER."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.envs.rewards.answers import extracted, normalised
from memfactory.envs.rewards.boxed_em import final_boxed, stripped
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.types import Task

RULES = ("boxed_em", "em", "sub_em", "f1", "string_match_all", "string_match_part", "format")


def reward(name, **options):
    return REWARDS.get(name)(REWARDS.options(name).model_validate(options), {})


def score(name, answer, *golds, **options):
    (only,) = reward(name, **options).score([Episode(Task("t", "Who?", golds), answer=answer)])
    return only


@pytest.mark.parametrize(
    ("answer", "gold", "worth"),
    [
        (r"So \boxed{Paris}.", "paris", 1),
        (r"\boxed{New   York\n City}".replace(r"\n", "\n"), "NewYork City", 1),  # spaces and line breaks do not count
        (r"\boxed{the Beatles}", "Beatles", 0),  # articles do
        (r"\boxed{beatles.}", "beatles", 0),  # and so does punctuation
        (r"\boxed{1} then \boxed{2}", "2", 1),  # the last box
        (r"\boxed{1} then \boxed{2}", "1", 0),
        (r"\boxed{a} then \boxed{b", "a", 0),  # the last box never closes
        (r"\boxed{f{x}y}", "f{x}y", 1),  # balanced braces
        (r"\boxed 42 $ and more", "42", 1),  # a bare box ends at a dollar sign
        (r"\boxed 42 and more", "42", 0),  # or at the end of the reply
        (r"\fbox{42}", "42", 0),  # MemAgent finds such a box and cannot open it
        (r"\boxed{42} \fbox{7}", "7", 0),
        (r"\boxed{50\%}", "50", 1),
        (r"\boxed{\$ 7}", "7", 1),
        (r"\boxed{\dfrac{1}{2}}", r"\tfrac{1}{2}", 1),
        (r"\boxed{90^\circ}", "90", 1),
        (r"\boxed{is .5}", "is0.5", 1),  # " ." becomes " 0."
        (r"\boxed{\left(1\right)}", "(1)", 1),
        ("Paris", "Paris", 0),  # no box
        ("", "Paris", 0),
        (r"\BOXED{Paris}", "Paris", 1),  # the reply is lower-cased as a whole
        (r"\boxed{1961}", "1", 0),
    ],
)
def test_boxed_exact_match_follows_the_rule_that_memagent_trains_on(answer, gold, worth):
    assert score("boxed_em", answer, gold) == worth


def test_boxed_exact_match_looks_at_the_last_300_characters_only():
    # \boxed{x} has 9 characters: with 291 behind it the box is just whole, with 292 its backslash is cut off.
    assert score("boxed_em", r"\boxed{x}" + "." * 291, "x") == 1
    assert score("boxed_em", r"\boxed{x}" + "." * 292, "x") == 0
    assert score("boxed_em", r"\boxed{x}" + "." * 292, "x", last_characters=301) == 1


def test_boxed_exact_match_takes_the_best_gold_answer():
    assert score("boxed_em", r"\boxed{UK}", "United Kingdom", "uk") == 1


def test_an_answer_stripped_of_latex_keeps_its_letters():
    assert stripped("a \\! b\nc \\% d") == "abcd"
    assert stripped("{.5} .5") == "{0.5}0.5"


def test_the_last_box_wins_over_any_fbox():
    assert final_boxed(r"\boxed{a} \fbox{b}") == "a"
    assert final_boxed("none") is None


@pytest.mark.parametrize(
    ("answer", "gold", "em", "sub_em", "f1"),
    [
        (r"\boxed{The Beatles!}", "beatles", 1, 1, 1),
        (r"\boxed{John Lennon}", "Lennon", 0, 1, 2 / 3),  # 1 of 2 words shared: 2 x 1 / (2 + 1)
        (r"\boxed{1}", "1961", 0, 1, 0),  # the known weak spot of containment both ways
        (r"\boxed{1961}", "1", 0, 1, 0),
        (r"\boxed{no}", "November", 0, 1, 0),
        (r"\boxed{yes indeed}", "yes", 0, 1, 0),  # HotpotQA: yes and no are all or nothing
        (r"\boxed{The}", "beatles", 0, 0, 0),  # nothing is left of "The"; MemAgent's sub_em says 1
        (r"\boxed{}", "beatles", 0, 0, 0),
        (r"\boxed{the the}", "The The", 1, 1, 1),  # nothing is left of the gold answer: as written
        (r"\boxed{a}", "The The", 0, 0, 0),
        (r"\boxed{a b c b}", "b c b d", 0, 1, 6 / 7),  # "a" is an article: {b, c, b} of {b, c, b, d}: 2 x 3 / (3 + 4)
        (r"\boxed{New-York}", "New York", 0, 0, 0),  # punctuation is deleted, not a space: "newyork"
        ("", "beatles", 0, 0, 0),
        (None, "beatles", 0, 0, 0),
    ],
)
def test_question_answering_rewards(answer, gold, em, sub_em, f1):
    assert [score(name, answer, gold) for name in ("em", "sub_em", "f1")] == [em, sub_em, f1]


def test_the_best_gold_answer_counts():
    assert score("em", r"\boxed{b}", "a1", "b") == 1
    assert score("f1", r"\boxed{x y}", "x q", "x y z") == 2 * 2 / (2 + 3)


def test_normal_form_drops_case_punctuation_articles_and_spacing():
    assert normalised("  The  cat's\tA.B. an\nend ") == "cats ab end"
    assert normalised("theatre") == "theatre"


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (r"It is \boxed{\text{Rio}}", {"boxed": "Rio", "the_answer_is": None, "auto": "Rio"}),
        (r"\boxed{\textbf{a \text{b}}}", {"boxed": "a b"}),
        ("Therefore, **The answer is Rio.**", {"boxed": None, "the_answer_is": "Rio", "auto": "Rio"}),
        ("the answer is A; no, the answer is B.", {"the_answer_is": "B"}),
        (r"The answer is 1. \boxed{2}", {"auto": "2", "the_answer_is": r"1. \boxed{2}"}),
        ("Rio", {"boxed": None, "the_answer_is": None, "auto": "Rio", "all": "Rio"}),
        (r"\boxed{open", {"boxed": None, "auto": r"\boxed{open"}),
    ],
)
def test_where_an_answer_stands(reply, found):
    assert {extract: extracted(reply, extract) for extract in found} == found


def test_an_answer_that_is_not_where_it_should_be_scores_zero():
    assert score("em", "Rio", "Rio", extract="boxed") == 0
    assert score("em", "Rio", "Rio", extract="the_answer_is") == 0
    assert score("em", "Rio", "Rio", extract="all") == 1


def test_ruler_rewards_look_for_the_gold_answers_in_the_whole_reply():
    reply = "They are ABCDEF, ghijkl and zzzzzz."
    assert score("string_match_all", reply, "abcdef", "ghijkl", "mnopqr") == 2 / 3  # not rounded to 0.67
    assert score("string_match_part", reply, "abcdef", "mnopqr") == 1
    assert score("string_match_part", reply, "mnopqr") == 0
    assert score("string_match_all", r"in \boxed{abcdef} out", "out") == 1
    assert score("string_match_all", r"in \boxed{abcdef} out", "out", extract="boxed") == 0


@pytest.mark.parametrize(
    ("reply", "worth"),
    [
        (r"So \boxed{x}", 1),
        (r"\boxed{x} \boxed{x}", 0),
        (r"\boxed{\boxed{x}}", 0),
        (r"\boxed{ }", 0),
        (r"\boxed{x", 0),
        (r"\boxed{x} \boxed{y", 0),
        ("x", 0),
        (None, 0),
    ],
)
def test_format_wants_exactly_one_usable_box(reply, worth):
    assert score("format", reply, "x") == worth


def test_without_gold_answers_a_score_is_unknown():
    assert [score(name, "x") for name in RULES if name != "format"] == [None] * 6


def test_rewards_bear_their_registered_names():
    assert [reward(name).name for name in RULES] == list(RULES)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.none(), st.text(), st.text(alphabet="\\boxed{} fthenswri.*$\n", max_size=200)),
    st.lists(st.text(min_size=1), min_size=1, max_size=3),
)
def test_any_reply_scores_between_0_and_1(answer, golds):
    episode = Episode(Task("t", "Who?", tuple(golds)), answer=answer)
    for name in RULES:
        (found,) = reward(name).score([episode])
        assert isinstance(found, float) and 0 <= found <= 1


def test_a_reply_of_ten_thousand_open_boxes_is_scored_at_once():
    assert score("em", r"\boxed{" * 10000, "x") == 0

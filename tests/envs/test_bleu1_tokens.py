"""The tokens of `bleu1` are those that the published values were made with, and cost linear time."""

import json
import os
import time
from pathlib import Path

import pytest

from memfactory.envs.rewards.mem0 import bleu1, tokens
from memfactory.envs.rewards.sentence_words import sentences, words

DATA = os.environ.get("MEMFACTORY_DATA")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the 'rack fest' won", "the 'rack fest ' won"),
        ('he said "yes."', "he said `` yes . ''"),
        ("'tis a dog's life", "'t is a dog 's life"),
        ("you can't, i cannot", "you ca n't , i can not"),
        ("it is 'a' b", "it is ' a ' b"),
        ("(see e.g. u.s. law, 3.5%)", "( see e.g. u.s. law , 3.5 % )"),
        ("at 12:30: tea--or “coffee”...", "at 12:30 : tea -- or “ coffee ” ..."),
        ("we're gonna wanna go", "we 're gon na wan na go"),
        ("ann.'", "ann . '"),
    ],
)
def test_the_tokens_of_a_sentence_are_those_of_the_rule(text, found):
    assert " ".join(words(text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # A number that a word follows is an ordinal; the end of one list entry before the next number is an end.
        ("goals: 1. to map\n2. to test", ["goals: 1. to map\n2. to test"]),
        ("1. to map them.\n2. to test", ["1. to map them.", "2. to test"]),
        ("in 1999. 2 cats", ["in 1999.", "2 cats"]),
        # A sign closes a sentence as a space does, and what closes with it stays with it.
        ("(one, etc.)'.", ["(one, etc.", ")'."]),
        ("(he left.) then rain", ["(he left.)", "then rain"]),
        ("well... what", ["well... what"]),
    ],
)
def test_sentences_end_where_the_published_values_say(text, found):
    assert sentences(text) == found


@pytest.mark.parametrize(
    ("answer", "gold", "worth"),
    [
        # "'rack" is one token: 2 of 3 tokens ("fest" and the closing quote) are shared, and no brevity.
        ("'rack fest'", "rack fest'", 2 / 3),
        # The full stop of "1." is no token, so 3 of the 4 tokens of "1. a dog ." are there.
        ("1. a dog.", "a dog.", 3 / 4),
    ],
)
def test_bleu_1_of_quotes_and_ordinals_by_hand(answer, gold, worth):
    assert bleu1(tokens(answer), tokens(gold)) == pytest.approx(worth)


@pytest.mark.skipif(not DATA, reason="MEMFACTORY_DATA names no folder with published scores")
def test_every_published_bleu_1_value_is_met():
    path = Path(str(DATA)) / "memory_r2_longmemeval_scores" / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [bleu1(tokens(str(row["response"])), tokens(str(row["answer"]))) for row in rows]
    assert len(rows) == 500
    assert found == pytest.approx([row["bleu_score"] for row in rows], abs=1e-12)


@pytest.mark.parametrize("pattern", ["mr. ", "1. ", "a.b.", ".)", "' a", '"', "(", " "])
def test_the_time_for_hostile_text_grows_with_its_length(pattern):
    def seconds(length):
        text = pattern * (length // len(pattern))
        begun = time.process_time()
        words(text)
        return time.process_time() - begun

    # Quadratic time would be 64 times as long.
    assert seconds(80_000) < 24 * max(seconds(10_000), 0.005)

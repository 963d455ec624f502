"""Generated texts: facts among filler, one question, sections that fill chunks exactly, splits that share no fact."""

import re
from pathlib import Path

import pytest

from memfactory.data.synthetic.fact_world import FILLER, NAMES, RELATIONS, Fact, units
from memfactory.data.synthetic.facts import DocumentOptions, draw_document
from memfactory.envs.longcontext import LongcontextEnv, LongcontextOptions
from memfactory.registry import DATASETS


def facts_rows(**options):
    dataset = DATASETS.get("facts")
    return dataset(dataset.Options(**options), Path()).rows()


def stated(document):
    return [statement.fact for section in document.statements for statement in section]


def test_a_row_has_memagents_fields_and_the_environment_reads_it():
    row = facts_rows(rows=3)[2]
    assert sorted(row.values) == ["answers", "context", "index", "input", "num_docs"]
    task = LongcontextEnv(LongcontextOptions(), []).task(row)
    assert task.question == row.values["input"] and list(task.answers) == row.values["answers"]
    assert f" {task.answers[0]}." in task.context


def test_a_row_depends_on_its_number_and_the_options_alone():
    few, many = facts_rows(rows=3, seed=7), facts_rows(rows=50, seed=7)
    assert [row.values for row in few] == [row.values for row in many[:3]]
    assert few[0].values != facts_rows(rows=3, seed=8)[0].values


def test_rows_are_counted_sliced_and_limited():
    rows = facts_rows(rows=10, limit=4)
    assert len(rows) == 4 and len(rows[1:]) == 3 and rows[-1].values == rows[3].values
    with pytest.raises(IndexError):
        rows[4]


def test_every_section_has_exactly_the_wanted_size_and_begins_with_filler():
    options = DocumentOptions(chunks=4, facts_per_chunk=3, chunk_words=61, corrections=0.5, two_hops=0.5)
    for index in range(40):
        document = draw_document(options, index)
        assert [units(chunk) for chunk in document.chunks] == [61] * 4
        assert all(chunk.startswith(FILLER) for chunk in document.chunks)


def test_units_count_words_marks_and_the_possessive():
    # Ada 's mentor is Boris .
    assert units("Ada's mentor is Boris.") == 6
    # Correction : Ada now lives in Rome .
    assert units("Correction: Ada now lives in Rome.") == 8


def test_train_and_heldout_share_no_fact():
    seen = {}
    for split in ("train", "heldout"):
        options = DocumentOptions(split=split, two_hops=0.3, corrections=0.3)
        seen[split] = {fact for index in range(300) for fact in stated(draw_document(options, index))}
        assert all(fact.split == split for fact in seen[split])
    assert not seen["train"] & seen["heldout"]


def test_about_a_quarter_of_all_facts_is_held_out():
    facts = [Fact(name, key, value) for name in NAMES for key, r in RELATIONS.items() for value in r.values]
    share = sum(fact.split == "heldout" for fact in facts) / len(facts)
    # 8192 facts: the standard deviation of the share is 0.005.
    assert len(facts) == 8192 and 0.23 < share < 0.27


def test_a_plain_question_is_answered_by_the_only_fact_about_that_person():
    for index in range(50):
        document = draw_document(DocumentOptions(), index)
        (person,) = document.hops
        (fact,) = [fact for fact in stated(document) if fact.person == person]
        assert document.question == RELATIONS[fact.relation].question.format(person)
        assert document.answer == fact.value


def test_a_correction_comes_in_a_later_section_and_gives_the_answer():
    for index in range(50):
        document = draw_document(DocumentOptions(corrections=1.0), index)
        found = [
            (number, statement)
            for number, section in enumerate(document.statements)
            for statement in section
            if statement.fact.person == document.hops[0]
        ]
        (first, old), (second, new) = found
        assert first < second and not old.corrects and new.corrects
        assert old.fact.value != new.fact.value == document.answer
        assert new.sentence in document.chunks[second]


def test_a_question_of_two_hops_leads_over_the_mentor():
    for index in range(50):
        document = draw_document(DocumentOptions(two_hops=1.0), index)
        person, mentor = document.hops
        facts = {fact.person: fact for fact in stated(document)}
        assert facts[person] == Fact(person, "mentor", mentor)
        assert document.answer == facts[mentor].value
        assert f"{person}'s mentor" in document.question
        order = {f.person: n for n, section in enumerate(document.statements) for f in (s.fact for s in section)}
        assert order[person] <= order[mentor]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunks": 17, "facts_per_chunk": 4}, "68, but there are only 64 people"),
        ({"corrections": 0.6, "two_hops": 0.5}, "corrections + two_hops is 1.1"),
        ({"chunks": 1, "corrections": 0.5}, "at least 2 chunks"),
        ({"chunks": 1, "facts_per_chunk": 1, "two_hops": 1.0}, "at least 2 people"),
        # 4 statements of at most 8, and 8 for filler.
        ({"chunk_words": 39}, "chunk_words is 39; 4 statements need at least 40"),
    ],
)
def test_options_that_do_not_fit_say_why(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        DATASETS.options("facts").model_validate(options)

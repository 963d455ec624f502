"""Demonstrations of reading: what a careful and a careless reader keep, and drills."""

import re
from pathlib import Path
from random import Random

import pytest

from memfactory.data.synthetic.fact_traces import answer_from, read
from memfactory.data.synthetic.fact_world import Fact
from memfactory.data.synthetic.facts import Document, Statement
from memfactory.errors import ConfigError
from memfactory.formats.recurrent_prompts import ANSWER_PROMPT, UPDATE_PROMPT
from memfactory.registry import DATASETS

ADA, BORIS = Fact("Ada", "city", "Oslo"), Fact("Boris", "animal", "heron")
CHEN, DORA = Fact("Chen", "colour", "teal"), Fact("Dora", "instrument", "harp")
MENTOR = Fact("Ada", "mentor", "Boris")


def document(*sections, hops=("Ada",)):
    statements = tuple(tuple(s if isinstance(s, Statement) else Statement(s) for s in section) for section in sections)
    return Document(statements, ("",) * len(sections), hops, "", "")


def traces(**options):
    dataset = DATASETS.get("fact_traces")
    return [row.values["messages"] for row in dataset(dataset.Options(**options), Path()).rows()]


def test_a_careful_reader_waits_for_the_fact_and_keeps_it():
    memories = read(Random(0), document([BORIS, CHEN], [DORA, ADA], [Fact("Elif", "city", "Rome")]), 0.0, 0.0)
    assert memories == ["- Ada: nothing yet", "- Ada lives in Oslo.", "- Ada lives in Oslo."]


def test_a_careful_reader_takes_up_a_correction():
    rome = Statement(Fact("Ada", "city", "Rome"), corrects=True)
    assert read(Random(0), document([ADA, CHEN], [DORA, rome]), 0.0, 0.0) == [
        "- Ada lives in Oslo.",
        "- Ada lives in Rome.",
    ]


def test_a_careful_reader_follows_the_mentor_in_one_section_or_two():
    apart = read(Random(0), document([MENTOR, CHEN], [BORIS, DORA], hops=("Ada", "Boris")), 0.0, 0.0)
    assert apart == ["- Ada's mentor is Boris.", "- Ada's mentor is Boris.\n- Boris keeps a heron."]
    together = read(Random(0), document([BORIS, MENTOR], hops=("Ada", "Boris")), 0.0, 0.0)
    assert together == ["- Ada's mentor is Boris.\n- Boris keeps a heron."]


def test_a_distracted_reader_always_writes_another_fact_of_the_section():
    second = set()
    for seed in range(20):
        memories = read(Random(seed), document([ADA, BORIS], [CHEN, DORA]), 1.0, 0.0)
        # Ada's fact is never taken up, so the second section is read without anything known: distracted again.
        assert memories[0] == "- Boris keeps a heron."
        second.add(memories[1])
    assert second == {"- Chen paints in teal.", "- Dora plays the harp."}


def test_a_forgetful_reader_overwrites_what_it_knew():
    memories = read(Random(0), document([ADA, BORIS], [CHEN], [DORA]), 0.0, 1.0)
    # Once Ada's fact is gone there is nothing left to forget, and nothing new about Ada.
    assert memories == ["- Ada lives in Oslo.", "- Chen paints in teal.", "- Ada: nothing yet"]


def test_traces_are_worded_with_the_modules_own_prompts():
    openings = {UPDATE_PROMPT.partition("{question}")[0], ANSWER_PROMPT.partition("{question}")[0]}
    conversations = traces(rows=40)
    assert {user["content"].partition("<problem>")[0] + "<problem>\n" for user, _ in conversations} == openings
    for user, assistant in conversations:
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert re.fullmatch(r"- \w+: nothing yet|- \w+ \w+ \w+ \w+\.|\\boxed\{\w+\}", assistant["content"])


def test_the_reader_may_have_prompts_of_its_own():
    prompts = {"update": "Q {question} M {memory} S {section}", "answer": "A {question} M {memory}"}
    for user, _ in traces(rows=10, reader={"prompts": prompts, "empty_memory": "none"}):
        assert re.match(r"Q .* M (none|- .*) S |A .* M - ", user["content"])


def test_wrong_options_of_the_reader_are_a_config_error():
    with pytest.raises(ConfigError, match="chunk_size"):
        traces(reader={"chunk_size": 5})


def test_an_answer_is_what_the_memory_says_right_or_wrong():
    assert answer_from("- Ada's mentor is Boris.\n- Boris keeps a heron.") == "heron"
    assert answer_from("- Ada: nothing yet") == answer_from("No previous memory") == "unknown"
    for user, assistant in traces(rows=100, distraction=0.5):
        if "boxed" in assistant["content"]:
            value = assistant["content"][len("\\boxed{") : -1]
            assert f" {value}.\n</memory>" in user["content"] or value == "unknown"


def test_a_drill_repeats_the_same_facts():
    for user, assistant in traces(rows=20, drills=1.0, drill_facts=5):
        listed = re.search(r"<section>\n(.*)\n</section>", user["content"]).group(1)
        repeated = [line.removeprefix("- ") for line in assistant["content"].splitlines()]
        assert 2 <= len(repeated) <= 5
        assert sorted(repeated) == sorted(re.findall(r"[A-Z][^.]*\.", listed))


def test_carelessness_needs_another_fact_to_write():
    with pytest.raises(ValueError, match="at least 2 facts_per_chunk"):
        DATASETS.options("fact_traces").model_validate({"facts_per_chunk": 1, "distraction": 0.5})


def test_the_answer_has_the_form_that_the_prompt_asks_for():
    def answers(**options):
        rows = traces(rows=40, chunks=1, reader=options)
        return [reply["content"] for prompt, reply in rows if prompt["content"].splitlines()[-1].startswith("Answer")]

    boxed, plain = answers(), answers(prompts="short")
    assert len(boxed) > 10 and [f"\\boxed{{{answer}}}" for answer in plain] == boxed

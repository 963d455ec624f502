"""From a reply to memory entries: JSON wherever it stands, entries mended or left out, where they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.formats.parse import Topic, find_object, integer, one_line, parse_extraction, parse_topics
from memfactory.formats.provenance import MOST_SOURCES, closest, with_provenance
from memfactory.modules.naive_extractor import NaiveExtractor, NaiveExtractorOptions
from memfactory.modules.topic_extractor import TopicExtractor, TopicExtractorOptions
from memfactory.roles import Extractor
from memfactory.types import Candidate, Sampling, Task, Utterance
from word_codec import WordCodec

GOOD = {"key": "home", "value": "Ada lives in Rome.", "memory_type": "UserMemory", "tags": ["place"]}
TALK = (
    Utterance("Ada", "I moved to Rome last week.", "D1:1", "8 May", "1"),
    Utterance("Bob", "How nice! I still live in Oslo.", "D1:2", "9 May", "1"),
    Utterance("Ada", "My dog Rex loves the river.", "D1:3", None, "1"),
)


def reply(*entries: object) -> str:
    return json.dumps({"memory_list": list(entries)})


@dataclass(frozen=True)
class Extracted:
    """The result of an extractor, the checks of its replies, and its prompts."""

    candidates: tuple[Candidate, ...]
    checks: dict[str, list[float]]
    prompts: list[str]


def extracted(module: Extractor, said: str | Sequence[str], turns: Sequence[Utterance] = TALK) -> Extracted:
    """An extractor's dialogue over `turns`, its prompts answered by the replies `said`, in order."""
    replies = [said] if isinstance(said, str) else list(said)
    episode, prompts = Episode(Task("t", "q", ("a",))), []
    engine = ScriptedEngine(lambda messages, sampling: replies.pop(0))
    asking = module.dialogue(episode, tuple(turns))
    try:
        ask = next(asking)
        while True:
            prompts.append(ask.messages[-1].content)
            assert (ask.step, ask.max_tokens) == ("extract", 1024)
            (outcome,) = engine.try_sample([(ask.messages, Sampling(ask.max_tokens))])
            ask = asking.send(outcome)
    except StopIteration as end:
        return Extracted(end.value, episode.checks, prompts)


def extractor(**options: object) -> NaiveExtractor:
    return NaiveExtractor(NaiveExtractorOptions.model_validate(options), WordCodec())


def topics(**options: object) -> TopicExtractor:
    return TopicExtractor(TopicExtractorOptions.model_validate(options), WordCodec())


# JSON in prose


@pytest.mark.parametrize(
    ("text", "values", "bare"),
    [
        ('{"k": 1}', {"k": 1}, True),
        ('\n```json\n{"k": 1}\n```\n', {"k": 1}, True),
        ('```{"k": 1}```', {"k": 1}, True),
        ('Here it is:\n```json\n{"k": 1}\n```', {"k": 1}, False),
        ('Sure {well}: {"k": {"k": 2}} and so on', {"k": {"k": 2}}, False),
        ('{"k": 1} or rather {"k": 2} {"other": 3}', {"k": 2}, False),
        ('[{"k": 1}]', {"k": 1}, False),
        ('<think>```json\n{"k": 1}\n```</think>{"k": 2}', {"k": 2}, True),
        ('{"k": "} {\\"k\\": 3}"}', {"k": '} {"k": 3}'}, True),
    ],
)
def test_the_last_object_that_has_the_key_is_found_in_prose(text, values, bare):
    found = find_object(text, "k")
    assert found is not None and (found.values, found.bare) == (values, bare)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        '"k"',
        '"{\\"k\\": 1}',
        "7",
        "null",
        '["k"]',
        '{"j": {"k": 1}}',
        '{"k": 1',
        "{'k': 1}",
        '<think>{"k": 1}',
        '<think>{"k": 1}</think> done',
        '{"k": ' + "1" * 5000 + "}",
        '{"k": ' * 3000,
        '{"k": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "{" * 20_000,
    ],
)
def test_what_is_no_whole_object_with_the_key_is_none(text):
    assert find_object(text, "k") is None


def test_an_object_that_is_nested_too_deep_does_not_hide_a_later_one():
    assert find_object('{"k": ' + "[" * 100_000 + ' {"k": 2}', "k").values == {"k": 2}


def test_a_text_is_brought_onto_one_line_that_can_be_written():
    assert one_line(" a\n\tb ") == "a b"
    assert [one_line(value) for value in (" \n", 3, None, ["a"])] == [None] * 4
    broken, pair = json.loads('"a\\ud83d"'), json.loads('"\\ud83d\\ude00"')
    assert one_line(broken) == "a�" and one_line(pair) == "😀"


def test_numbers_may_be_written_as_digits_but_truth_is_no_number():
    assert [integer(value) for value in (3, "3", " 03 ", -1)] == [3, 3, 3, -1]
    assert [integer(value) for value in (True, 3.0, "3.0", "³", "-1", "1" * 10, None, [3])] == [None] * 8


# Extraction


def test_a_strict_reply_is_taken_as_it_stands():
    found = parse_extraction(reply(GOOD, {"key": "pet", "value": "Rex is a dog."}))
    assert found.candidates == (
        Candidate("Ada lives in Rome.", "home", "UserMemory", ("place",)),
        Candidate("Rex is a dog.", "pet"),
    )
    assert found.form == 1.0


@pytest.mark.parametrize(
    ("entries", "values", "form"),
    [
        # Mended entries count half: no key, tags that are none, an unknown type.
        ([{"value": "x"}], [("", "x")], 0.5),
        ([{"key": 4, "value": "x"}], [("", "x")], 0.5),
        ([{**GOOD, "tags": "place"}], [("home", "Ada lives in Rome.")], 0.5),
        ([{**GOOD, "tags": ["place", 3]}], [("home", "Ada lives in Rome.")], 0.5),
        ([{**GOOD, "memory_type": ["UserMemory"]}], [("home", "Ada lives in Rome.")], 0.5),
        # What cannot be mended is left out: (1 + 0 + 0 + 0) / 4.
        (
            [GOOD, "a string", {"key": "k", "value": " "}, {"key": "k", "value": 3}],
            [("home", "Ada lives in Rome.")],
            0.25,
        ),
        # Said twice, in other capitals and over two lines: 1 / 2.
        ([GOOD, {"key": "Home", "value": "ada lives\nin Rome."}], [("home", "Ada lives in Rome.")], 0.5),
    ],
)
def test_entries_are_mended_or_left_out(entries, values, form):
    found = parse_extraction(reply(*entries))
    assert [(candidate.key, candidate.value) for candidate in found.candidates] == values
    assert found.form == form


def test_what_is_mended_takes_the_default():
    (found,) = parse_extraction(reply({**GOOD, "memory_type": "Secret", "tags": {"a": 1}})).candidates
    assert (found.kind, found.tags) == ("fact", ())
    (found,) = parse_extraction(reply({**GOOD, "tags": ["place", 3]})).candidates
    assert (found.kind, found.tags) == ("UserMemory", ())


def test_words_around_the_object_count_as_one_entry_more():
    assert parse_extraction(f"Here you are: {reply(GOOD)}").form == 1 / 2
    assert parse_extraction(f"```json\n{reply(GOOD, {'key': 'k', 'value': 'v'})}\n```").form == 1.0
    assert parse_extraction(f"{reply(GOOD, {'key': 'k', 'value': 'v'})} That is all.").form == 2 / 3


@pytest.mark.parametrize(
    "text",
    [
        '{"memory_list": []}',  # defect 2: to write nothing earned the full reward
        '{"memory_list": null}',
        '{"memory_list": {"key": "k", "value": "v"}}',
        '{"memory_list": ["a", 3, null]}',
        '"memory_list"',  # defect 4: a string that holds the word
        "12",  # defect 4: a number crashed the step
        '["memory_list"]',  # defect 9: a list crashed the step
        f"<think>```json\n{reply(GOOD)}\n```",  # defects 8 and 11: thinking was graded
        f"<think>```json\n{reply(GOOD)}\n```</think>I do not know.",
    ],
)
def test_a_reply_without_a_usable_entry_scores_nothing(text):
    assert parse_extraction(text) == parse_extraction("") and parse_extraction(text).form == 0.0


def test_prose_before_the_object_does_not_hide_it():
    """Defect 11: leading prose killed valid JSON."""
    assert len(parse_extraction(f"I think that {{this}} matters: {reply(GOOD)}").candidates) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["memory_list", "extracted_memories", "key", "value", "tags", "memory_type"])
            | st.sampled_from(["summary", "reference", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.text() | json_values.map(json.dumps) | st.tuples(st.text(), json_values.map(json.dumps)).map("".join))
def test_no_reply_is_an_error_and_its_form_is_from_0_to_1(text):
    for found, usable in (
        (parse_extraction(text), parse_extraction(text).candidates),
        (parse_topics(text, 3), parse_topics(text, 3).topics),
    ):
        assert 0 <= found.form <= 1 and (found.form > 0) == (len(usable) > 0)
    for candidate in with_provenance(parse_extraction(text).candidates, TALK, "speaker"):
        assert candidate.value.strip() and "\n" not in candidate.value
        f"{candidate.key}{candidate.value}{candidate.tags}".encode()


# Where an entry comes from


@pytest.mark.parametrize(
    ("value", "sources", "time", "speaker"),
    [
        ("Ada moved to ROME.", ("D1:1",), "8 May", "Ada"),
        ("Bob's home is Oslo.", ("D1:2",), "9 May", "Bob"),
        # One shared word each; the second utterance is Bob's, whom the entry names.
        ("Bob knows Rome and Oslo.", ("D1:2",), "9 May", "Bob"),
        # One each, no speaker named: both, and the newest time of theirs.
        ("Rome and Oslo are cities.", ("D1:1", "D1:2"), "9 May", "Ada"),
        # Its utterance has no time.
        ("Rex is a dog.", ("D1:3",), None, "Ada"),
        # Nothing is shared but a name or words of any text: no source, the part's newest time, its first speaker.
        ("Ada is how she is.", (), "9 May", "Ada"),
        ("Nothing of the kind.", (), "9 May", "Ada"),
    ],
)
def test_an_entry_comes_from_the_utterances_that_share_its_words(value, sources, time, speaker):
    (found,) = with_provenance([Candidate(value)], TALK, "speaker")
    assert (found.sources, found.time, found.namespace) == (sources, time, speaker)
    (joint,) = with_provenance([Candidate(value)], TALK, "joint")
    assert (joint.sources, joint.namespace) == (sources, "")


def test_an_entry_that_fits_many_utterances_alike_comes_from_none_in_particular():
    same = [Utterance("Ada", f"tea number {n}", f"D1:{n}") for n in range(MOST_SOURCES + 1)]
    assert with_provenance([Candidate("tea")], same[:-1], "joint")[0].sources == ("D1:0", "D1:1", "D1:2")
    assert with_provenance([Candidate("tea")], same, "joint")[0].sources == ()


def test_utterances_without_an_id_are_no_evidence():
    assert with_provenance([Candidate("tea")], [Utterance("Ada", "tea")], "joint")[0].sources == ()


def test_the_closest_candidate_shares_the_most_words():
    one, two = Candidate("Ada lives in Rome", "home"), Candidate("Ada has a dog", "pet")
    assert closest("a dog called Rex", [one, two]) is two
    assert closest("Ada", [one, two]) is one
    assert closest("nothing alike", [one, two]) is None and closest("Ada", []) is None


# The module naive_extractor


def test_the_extractor_asks_once_and_says_where_entries_come_from():
    said = reply({"key": "home", "value": "Ada moved to Rome."}, {"key": "pet", "value": "Ada's dog is called Rex."})
    found = extracted(extractor(namespaces="speaker"), said)
    (prompt,) = found.prompts
    assert "<conversation>\nAda: [8 May] I moved to Rome last week.\nBob: [9 May] How nice!" in prompt
    assert found.candidates == (
        Candidate("Ada moved to Rome.", "home", sources=("D1:1",), namespace="Ada", time="8 May"),
        Candidate("Ada's dog is called Rex.", "pet", sources=("D1:3",), namespace="Ada"),
    )
    assert found.checks == {"extract": [1.0]}


def test_a_malformed_extraction_finds_nothing_and_scores_nothing():
    found = extracted(extractor(), "I would remember that Ada moved.")
    assert (found.candidates, found.checks) == ((), {"extract": [0.0]})


@pytest.mark.parametrize("module", [extractor(), topics()])
def test_without_utterances_nothing_is_asked(module):
    assert extracted(module, [], ()) == Extracted((), {}, [])


# The module topic_extractor


def test_topics_keep_the_references_that_are_turns():
    text = json.dumps({
        "extracted_memories": [
            {"summary": "Ada moved.", "reference": [0, "1"]},
            {"summary": "Rex swims.", "reference": [2, 3, -1, 2]},
            {"summary": "Ada is glad.", "reference": 1},
            {"summary": "ada moved.", "reference": [0]},
            {"summary": ""},
        ]
    })  # fmt: skip
    found = parse_topics(text, 3)
    assert found.topics == (Topic("Ada moved.", (0, 1)), Topic("Rex swims.", (2,)), Topic("Ada is glad.", (1,)))
    assert found.form == (1 + 0.5 + 0.5 + 0 + 0) / 5


@pytest.mark.parametrize("text", ["NO_TRAIT", '{"extracted_memories": []}', '{"extracted_memories": "NO_TRAIT"}'])
def test_a_session_without_a_topic_scores_nothing(text):
    assert parse_topics(text, 3).topics == () and parse_topics(text, 3).form == 0.0


def test_a_session_is_summed_up_for_each_speaker():
    ada = {"extracted_memories": [{"summary": "Ada moved to Rome.", "reference": [2, 0]}]}
    found = extracted(topics(namespaces="speaker"), [json.dumps(ada), "NO_TRAIT"])
    assert "[0] Ada: [8 May] I moved to Rome last week.\n[1] Bob: [9 May]" in found.prompts[0]
    assert ["about Ada" in found.prompts[0], "about Bob" in found.prompts[1]] == [True, True]
    assert found.candidates == (
        Candidate("Ada moved to Rome.", sources=("D1:1", "D1:3"), namespace="Ada", time="8 May"),
    )
    assert found.checks == {"extract": [1.0, 0.0]}


def test_a_topic_joins_the_memory_of_whom_it_is_about_whoever_said_it():
    told = json.dumps({"extracted_memories": [{"summary": "Ada has moved.", "reference": [1]}]})
    found = extracted(topics(namespaces="speaker"), [told, "NO_TRAIT"])
    assert [(found.sources, found.namespace) for found in found.candidates] == [(("D1:2",), "Ada")]


def test_a_topic_without_a_reference_comes_from_the_turns_whose_words_it_shares():
    said = json.dumps({"extracted_memories": [{"summary": "Bob is from Oslo.", "reference": [9]}]})
    found = extracted(topics(each_speaker=False, namespaces="speaker"), said)
    assert len(found.prompts) == 1 and "about Ada and Bob" in found.prompts[0]
    assert found.candidates == (Candidate("Bob is from Oslo.", sources=("D1:2",), namespace="Bob", time="9 May"),)
    joint = extracted(topics(each_speaker=False), said)
    assert joint.candidates[0].namespace == ""

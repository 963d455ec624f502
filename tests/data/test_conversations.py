"""Generated conversations: what is true in the end, where it was said, and how the modules are shown to answer."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from memfactory.data.base import GeneratedRows, Row
from memfactory.data.mixture import MixtureDataset
from memfactory.data.synthetic.conversation_traces import DRILL_PROMPT, READERS, ConversationTracesDataset
from memfactory.data.synthetic.conversation_world import CHANGED, TOPICS, State, draw_state
from memfactory.data.synthetic.conversations import ConversationOptions, ConversationsDataset, draw_story
from memfactory.data.synthetic.fact_world import FILLER, NAMES, split_of
from memfactory.envs.memory_rows import MemoryRowReader
from memfactory.errors import ConfigError
from memfactory.formats.parse import parse_extraction
from memfactory.formats.updates import parse_operations
from memfactory.memory.bank import BankSource
from memfactory.modules.citing_answer import parse_cited
from memfactory.modules.naive_updater import MEM0_PROMPT
from memfactory.modules.rerank_retriever import parse_choice
from memfactory.text import after_marker
from memfactory.types import Candidate, MemoryItem

FORMS = ("tuple", "replay", "rerank")
LITTLE = {"what", "is", "the", "of", "a", "in", "from"}


def rows(dataset, **options):
    return dataset(dataset.Options(**options), Path()).rows()


def values(**options):
    return [row.values for row in rows(ConversationsDataset, **options)]


def exchanges(step, count=60, **options):
    found = rows(ConversationTracesDataset, rows=count, steps={step: 1}, **options)
    return [tuple(message["content"] for message in row.values["messages"]) for row in found]


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def block(prompt, name):
    return re.search(rf"<{name}>\n(.*?)\n</{name}>", prompt, re.DOTALL).group(1).splitlines()


def states_in(texts):
    """The states that memory sentences or utterances of (speaker, text) state."""
    spoken = {topic.first_person: key for key, topic in TOPICS.items()}
    for speaker, text in texts:
        match = re.fullmatch(r"I (\w+ \w+) (\w+)( now)?\.", text)
        if match and match.group(1) in spoken:
            yield State(speaker, spoken[match.group(1)], match.group(2))


# The world


def test_a_paraphrase_shares_only_the_person_and_little_words_with_the_memory():
    for key, topic in TOPICS.items():
        for value in topic.values:
            state = State("Ada", key, value)
            assert words(state.question(paraphrased=True)) & words(state.sentence) <= {"ada", *LITTLE}
            # Nor do the words begin alike, as an embedder of character n-grams would see.
            content = words(topic.paraphrase) - LITTLE
            assert not {word[:4] for word in content} & {word[:4] for word in words(state.sentence)}


def test_a_plain_question_holds_the_verb_that_the_person_says():
    for key, topic in TOPICS.items():
        assert topic.first_person.split()[0] in words(State("Ada", key, topic.values[0]).question())


def test_no_two_topics_are_worded_alike():
    for wording in ("words", "first_person", "question", "paraphrase"):
        assert len({getattr(topic, wording) for topic in TOPICS.values()}) == len(TOPICS)


def test_every_fact_about_anyone_can_change_within_its_split():
    for name in NAMES:
        for key, topic in TOPICS.items():
            counts = Counter(State(name, key, value).split for value in topic.values)
            assert min(counts["train"], counts["heldout"]) >= 2


def test_a_state_is_of_the_split_of_its_sentence_and_not_the_value_it_had():
    for seed in range(50):
        state = draw_state(Random(seed), "Otto", "home", "heldout", other_than="Oslo")
        assert split_of(state.sentence) == "heldout" and state.value != "Oslo"


# The rows


@pytest.mark.parametrize("form", FORMS)
def test_a_row_depends_on_the_options_and_its_number_alone(form):
    whole = values(form=form, rows=20)
    assert [values(form=form, rows=n + 1)[-1] for n in (0, 7, 19)] == [whole[0], whole[7], whole[19]]
    assert values(form=form, rows=20, seed=1) != whole


@pytest.mark.parametrize("form", FORMS)
def test_the_evidence_states_the_answer_and_nothing_later_says_otherwise(form):
    stated = {one.sentence: one for one in (State(n, t, v) for n in NAMES for t in TOPICS for v in TOPICS[t].values)}
    for row in values(form=form, rows=200, paraphrased=0.0):
        latest = {}
        for item in row["memory"]:
            state = stated[item["value"]]
            latest[state.person, state.topic] = (state, item["sources"][0], "kept")
        for turn in row["conversation"]:
            for state in states_in([(turn["speaker"], turn["text"])]):
                place = state.person, state.topic
                known = place in latest
                assert turn["text"].endswith(f" {CHANGED}.") == known
                assert not known or latest[place][0].value != state.value
                latest[place] = (state, turn["dia_id"], "changed" if known else "new")
        asked = next(one for one in latest.values() if one[0].question() == row["question"])
        assert (asked[0].value, [asked[1]], asked[2]) == (row["answer"], row["evidence"], row["category"])


def test_splits_share_no_fact():
    stated = {}
    for split in ("train", "heldout"):
        items = [item for row in values(form="rerank", rows=100, split=split) for item in row["memory"]]
        stated[split] = {item["value"] for item in items}
    assert len(stated["train"]) > 900 and not stated["train"] & stated["heldout"]


def test_the_sizes_are_those_of_the_form_unless_given():
    one = values(form="tuple", rows=1)[0]
    assert (len(one["memory"]), len(one["conversation"])) == (5, 3)
    one = values(form="replay", rows=1)[0]
    assert (len(one["memory"]), len(one["conversation"])) == (0, 12)
    one = values(form="rerank", rows=1)[0]
    assert (len(one["memory"]), len(one["conversation"])) == (20, 0)
    one = values(form="replay", rows=1, items=4, sessions=2, utterances=5, facts=3)[0]
    assert (len(one["memory"]), len(one["conversation"])) == (4, 10)
    assert sum(turn["text"] not in FILLER for turn in one["conversation"]) == 6


def test_about_as_many_rows_ask_about_what_is_kept_as_the_options_say():
    categories = Counter(row["category"] for row in values(form="tuple", rows=800, kept=0.25, changes=0.5))
    # 200 expected, with a standard deviation of sqrt(800 x .25 x .75) = 12.2; new and changed 300 each.
    assert 150 < categories["kept"] < 250 and 240 < categories["new"] < 360


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"facts": 4}, "facts is 4, but a session has only 3 utterances"),
        ({"form": "rerank", "items": 21}, "items is 21; there are only 20 facts about 2 people"),
        ({"form": "replay", "sessions": 21}, "items . sessions x facts is 21"),
        ({"items": 0, "sessions": 0}, "nothing to ask about"),
        ({"form": "rerun"}, "'tuple', 'replay' or 'rerank'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ConversationOptions(**options)


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_are_tasks_of_memory_environments(form):
    task = MemoryRowReader().task(Row(values(form=form, rows=1)[0], "row"))
    row = values(form=form, rows=1)[0]
    assert task.answers == (row["answer"],) and task.evidence == tuple(row["evidence"])
    assert [item.value for item in task.memory] == [item["value"] for item in row["memory"]]
    assert [turn.id for turn in task.conversation] == [turn["dia_id"] for turn in row["conversation"]]
    assert task.meta["category"] == row["category"]


def test_words_find_the_memory_for_plain_questions_but_not_for_paraphrases():
    def recall(paraphrased):
        found = 0
        for row in values(form="rerank", rows=100, split="heldout", paraphrased=paraphrased):
            items = tuple(MemoryItem(item["id"], item["key"], item["value"]) for item in row["memory"])
            best = BankSource().open(items).search(row["question"], 5)
            found += any(row["answer"] in one.item.value for one in best)
        return found

    # Of the ten items about the person five are found, whichever share most letters with the question.
    assert recall(0.0) > 95 and 30 < recall(1.0) < 65


# The demonstrations


def test_every_prompt_is_that_of_the_module():
    dataset = ConversationTracesDataset(ConversationTracesDataset.Options(), Path())
    for step, prompt in dataset.prompts.items():
        asked, _ = exchanges(step, 1)[0]
        opening = prompt[: prompt.index("{")]
        assert asked.startswith(opening) and "{" not in re.sub(r"Reply with JSON.*", "", asked)
    assert set(dataset.prompts) == {*READERS, "drill", "quiz"} and dataset.prompts["drill"] == DRILL_PROMPT


def test_a_careful_extraction_writes_down_what_is_stated():
    for asked, said in exchanges("extract"):
        turns = [line.split(": ", 1) for line in block(asked, "conversation")]
        found = parse_extraction(said)
        assert found.form == 1
        assert [(c.key, c.value) for c in found.candidates] == [(s.person, s.sentence) for s in states_in(turns)]


def test_a_careless_extraction_writes_down_something_else():
    slips = exchanges("extract", careless_extract=1.0)
    for asked, said in slips:
        turns = [line.split(": ", 1) for line in block(asked, "conversation")]
        stated = {state.sentence for state in states_in(turns)}
        found = parse_extraction(said)
        assert found.candidates and not stated & {candidate.value for candidate in found.candidates}
    assert any(entry["value"] in FILLER for _, said in slips for entry in json.loads(said)["memory_list"])


def decided(asked, said):
    """The parsed decision of a demonstration, its items and its candidates."""
    texts = [
        [line.split(". ", 1)[1] for line in block(asked, name) if line != "(nothing)"] for name in ("memory", "new")
    ]
    items = [MemoryItem(f"m{number}", "", text) for number, text in enumerate(texts[0])]
    candidates = [Candidate(text) for text in texts[1]]
    return parse_operations(said, items, candidates), items, candidates


def test_a_careful_update_deletes_what_changed_keeps_the_rest_and_adds_what_is_new():
    kinds = Counter()
    for asked, said in exchanges("update", 200):
        decision, items, candidates = decided(asked, said)
        assert decision.form == 1
        news = [candidate.text.split() for candidate in candidates if ":" not in candidate.value]
        for operation, item in zip(decision.operations, items, strict=False):
            outdated = any(item.value.split()[:3] == new[:3] for new in news)
            assert type(operation).__name__ == ("Delete" if outdated else "Keep")
            kinds[outdated] += 1
        for operation, candidate in zip(decision.operations[len(items) :], candidates, strict=True):
            assert type(operation).__name__ == ("Keep" if ":" in candidate.value else "Add")
    assert min(kinds[True], kinds[False]) > 50


def test_a_careless_update_does_the_opposite():
    for asked, said in exchanges("update", careless_update=1.0):
        decision, items, candidates = decided(asked, said)
        assert decision.form == 1
        for operation, candidate in zip(decision.operations[len(items) :], candidates, strict=True):
            assert type(operation).__name__ == ("Add" if ":" in candidate.value else "Keep")


def question_and_lines(asked):
    (question,) = block(asked, "question")
    return question, [re.sub(r"^(\d+\.|\[\d+\]|-) ", "", line) for line in block(asked, "memory")]


def answering(question, lines):
    """The place of the line that answers `question`."""
    person = next(name for name in NAMES if name in question)
    keys = [
        key
        for key, topic in TOPICS.items()
        if question in (topic.question.format(person), topic.paraphrase.format(person))
    ]
    (place,) = [n for n, line in enumerate(lines) if line.startswith(f"{person} {TOPICS[keys[0]].words} ")]
    return place


def test_a_careful_choice_begins_with_the_memory_that_answers():
    for asked, said in exchanges("rerank"):
        question, lines = question_and_lines(asked)
        choice = parse_choice(said, len(lines), 5)
        assert choice.form == 1 and len(choice.numbers) == min(5, len(lines))
        assert choice.numbers[0] == answering(question, lines) + 1


def test_a_careless_choice_is_right_no_more_often_than_chance():
    right = 0
    for asked, said in exchanges("rerank", 200, careless_rerank=1.0, min_candidates=20):
        right += answering(*question_and_lines(asked)) + 1 in parse_choice(said, 20, 5).numbers
    # 5 of 20: 50 expected, standard deviation sqrt(200 x .25 x .75) = 6.1.
    assert 30 < right < 70


@pytest.mark.parametrize("step", ["answer", "cite"])
def test_an_answer_is_the_value_in_the_memory_that_answers(step):
    for asked, said in exchanges(step, absent=0.0):
        question, lines = question_and_lines(asked)
        place = answering(question, lines)
        value = lines[place].split()[-1].removesuffix(".")
        if step == "cite":
            assert parse_cited(said, len(lines)) == parse_cited(f"{value} [{place}]", len(lines))
            assert parse_cited(said, len(lines)).form == 1
        else:
            assert said == f"- {lines[place]}\n**Answer:** {value}" and after_marker(said) == value


@pytest.mark.parametrize(("step", "reply"), [("answer", "**Answer:** unknown"), ("cite", "unknown [NO_CITE]")])
def test_without_the_memory_the_answer_is_unknown(step, reply):
    for asked, said in exchanges(step, absent=1.0):
        assert said == reply
        with pytest.raises(ValueError, match="not enough values"):
            answering(*question_and_lines(asked))


def test_a_drill_repeats_the_memories():
    for asked, said in exchanges("drill"):
        listed = block(asked, "section")[0].strip()
        assert sorted(re.findall(r"\w+ \w+ \w+ \w+\.", listed)) == sorted(line[2:] for line in said.splitlines())


def test_a_quiz_asks_about_memories_and_answers_with_their_values_or_their_numbers():
    kinds = Counter()
    for asked, said in exchanges("quiz"):
        first = block(asked, "memory")[0].startswith("1.")
        lines = [re.sub(r"^(\d+\.|\[\d+\]) ", "", line) for line in block(asked, "memory")]
        for line in said.splitlines():
            question, _, reply = line.rpartition(" ")
            place = answering(question, lines)
            kinds[reply.isdigit()] += 1
            assert reply == (str(place + first) if reply.isdigit() else lines[place].split()[-1].removesuffix("."))
    assert min(kinds.values()) > 100


def test_the_modules_may_have_prompts_of_their_own():
    asked, _ = exchanges("extract", 1, modules={"extract": {"prompt": "Q {conversation}"}})[0]
    assert re.match(r"Q \w+: ", asked)
    asked, _ = exchanges("update", 1, modules={"update": {"format": "mem0"}})[0]
    assert asked.startswith(MEM0_PROMPT[:40])
    with pytest.raises(ConfigError, match="options of naive_extractor are wrong"):
        exchanges("extract", 1, modules={"extract": {"promt": ""}})


def test_the_answer_alone_is_the_reply_to_a_short_prompt():
    marked = [reply for _, reply in exchanges("answer", 40)]
    plain = [reply for _, reply in exchanges("answer", 40, modules={"answer": {"prompts": "short"}})]
    assert [reply.rpartition("**Answer:** ")[2] for reply in marked] == plain


def test_steps_without_a_share_are_refused():
    with pytest.raises(ValueError, match="at least one step"):
        exchanges("extract", 1) and ConversationTracesDataset.Options(steps={"extract": 0})


# Mixtures


def test_a_mixture_has_its_parts_in_their_shares():
    parts = [
        {"weight": 3, "data": {"name": "conversation_traces", "steps": {"drill": 1}}},
        {"weight": 1, "data": {"name": "fact_traces"}},
    ]
    mixed = rows(MixtureDataset, parts=parts, rows=400)
    drills = sum(row.source.startswith("conversation_traces") for row in mixed)
    # 300 expected, standard deviation sqrt(400 x .75 x .25) = 8.7.
    assert 265 < drills < 335 and [row.values for row in mixed] == [
        row.values for row in rows(MixtureDataset, parts=parts, rows=400)
    ]


def test_a_part_of_a_mixture_is_written_like_any_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    forms = ["one.jsonl", {"data": "one.jsonl"}, {"data": {"path": "one.jsonl"}}, {"data": "fact_traces"}]
    mixed = MixtureDataset(MixtureDataset.Options.model_validate({"parts": forms, "rows": 40}), tmp_path)
    assert mixed.source == "mixture of one.jsonl, one.jsonl, one, fact_traces"
    texts = [row.values for row in mixed.rows() if "text" in row.values]
    assert 20 < len(texts) < 40 and {*map(str, texts)} == {"{'text': 'a'}"}


def test_a_part_of_a_mixture_must_name_a_dataset_with_options_it_has():
    with pytest.raises(ConfigError, match="should name a dataset"):
        rows(MixtureDataset, parts=[{"data": {"rows": 3}}])
    with pytest.raises(ConfigError, match="options of fact_traces are wrong"):
        rows(MixtureDataset, parts=[{"data": {"name": "fact_traces", "drill": 1}}])


def test_stories_are_drawn_from_the_given_randomness_alone():
    options = ConversationOptions(form="replay")
    assert draw_story(options, Random(3)) == draw_story(options, Random(3)) != draw_story(options, Random(4))


def test_rows_that_are_generated_are_not_made_before_they_are_drawn():
    made = []

    class Lazy(MixtureDataset):
        def rows(self):
            return GeneratedRows(lambda index: made.append(index), 10**9)

    options = MixtureDataset.Options(parts=[{"data": {"name": "facts"}}])
    assert len(Lazy(options, Path()).checked_rows()) == 10**9 and made == []

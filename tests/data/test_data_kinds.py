"""Data as it is found: byte order marks, NaN, lists stored as text, evidence that is nowhere, spellings of accents."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.build import build_tasks
from memfactory.config import load_config
from memfactory.config.components import dataset_component
from memfactory.data.base import Row
from memfactory.data.benchmarks.longmemeval import LongMemEvalForm, build_longmemeval
from memfactory.data.rows import parse_json, read_rows
from memfactory.data.writing import write_rows
from memfactory.envs.longcontext import LongcontextEnv, LongcontextOptions
from memfactory.envs.memory_bank import MemoryBankEnv, MemoryBankOptions
from memfactory.envs.question_rows import FieldNames, read_task
from memfactory.envs.row_fields import listed_texts
from memfactory.episode import Episode
from memfactory.errors import DataError
from memfactory.evaluation.questions import conversation_question
from memfactory.memory.bm25 import Postings
from memfactory.registry import REWARDS
from memfactory.types import MemoryItem, Task

BANK = MemoryBankEnv(MemoryBankOptions(), ())
TALK = [{"speaker": "Ann", "text": "I live in Oslo.", "dia_id": "D1:1"}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tasks(spec, env=BANK):
    return build_tasks(dataset_component(spec, Path()), env, Path())


# Conversations out of files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_conversation_may_begin_with_a_byte_order_mark(here, encoding):
    Path("talk.json").write_text(json.dumps(TALK), encoding=encoding)
    resolved = load_config("tiny", ["env=memory_bank"])
    task = conversation_question(resolved, "Where?", Path("talk.json"))
    assert task.conversation[0].text == "I live in Oslo."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 90 + "]" * 90, "is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
        ('[{"speaker": "A", "text": ' + "[" * 800 + "]" * 800 + "}]", "is nested too deeply"),
        ("[" + "9" * 10_000 + "]", "more digits than can be read"),
        ("{oops", "not JSON"),
        ("7", "should be a list of utterances"),
        ("[NaN]", "should be an object"),
    ],
)
def test_a_hostile_conversation_is_an_error_in_words(here, text, words):
    Path("talk.json").write_text(text)
    with pytest.raises(DataError, match=words):
        conversation_question(load_config("tiny", ["env=memory_bank"]), "Where?", Path("talk.json"))


def test_a_row_that_is_nested_too_deeply_is_a_bad_row(here):
    deep = "[" * 200 + "]" * 200
    Path("lines.jsonl").write_text(f'{{"a": {deep}}}\n{{"a": 1}}\n')
    Path("array.json").write_text(f'[{{"a": {deep}}}, {{"a": 1}}]')
    for name in ("lines.jsonl", "array.json"):
        first, second = read_rows(Path(name), name)
        assert "nested too deeply" in str(first.problem) and second.values == {"a": 1}
    assert parse_json("[" * 60 + "]" * 60, "x")


# Gold answers


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ('["Oslo", "Oslo, Norway"]', ["Oslo", "Oslo, Norway"]),
        ("['Oslo' 'Bergen']", ["Oslo", "Bergen"]),
        ("['Oslo', \"Bob's\"]", ["Oslo", "Bob's"]),
        ("['a\\nb'\n 'c']", ["a\nb", "c"]),
        (["['Oslo' 'Bergen']", "Paris"], ["Oslo", "Bergen", "Paris"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[0, 1)", ["[0, 1)"]),
        ("array(['Lisbon', 'Porto'], dtype=object)", ["Lisbon", "Porto"]),
        ("array(['Lisbon',\n       'Porto'], dtype='<U6')", ["Lisbon", "Porto"]),
        ("np.array(['Lisbon'])", ["Lisbon"]),
        ("('Lisbon', 'Porto')", ["Lisbon", "Porto"]),
        ("('Lisbon',)", ["Lisbon"]),
        ("('Lisbon')", ["('Lisbon')"]),
        ("(Lisbon, Porto)", ["(Lisbon, Porto)"]),
        ("{'Lisbon'}", ["Lisbon"]),
        ("frozenset({'Lisbon'})", ["Lisbon"]),
        ('["Lisbon", 3]', ["Lisbon", "3"]),
        ("[[1, 2], [3, 4]]", ["[[1, 2], [3, 4]]"]),
        ("array([1, 2])", ["array([1, 2])"]),
        ("{'a': 1}", ["{'a': 1}"]),
        ("set(['a'] is a set)", ["set(['a'] is a set)"]),
        ("the list ['a']", ["the list ['a']"]),
        ("[Oslo]", ["[Oslo]"]),
        (3, ["3"]),
    ],
)
def test_a_list_that_was_stored_as_text_is_that_list(given, found):
    row = Row({"input": "Where?", "context": "c", "answers": given}, "row 1")
    assert list(read_task(row, FieldNames()).answers) == found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('["Lisbon", null]', "a list that holds null"),
        ("['Lisbon', None]", "a list that holds null"),
        ("[null]", "a list that holds null"),
        ('[["Lisbon"]]', "a list that holds a list of 1"),
        ('["Lisbon", ""]', "a list that holds an empty text"),
        ("array(['Lisbon', nan], dtype=object)", "an array of which not all can be read"),
        ("[]", "an empty list"),
        (["Porto", "[]"], "an empty list"),
        ("array([], dtype=object)", "an empty list"),
    ],
)
def test_a_stored_list_without_gold_answers_is_a_bad_row(here, given, told):
    row = {"input": "Where?", "context": "c", "answers": given}
    with pytest.raises(DataError, match=f"^row 1: field 'answers' should hold gold answers: it is the text .*{told}$"):
        read_task(Row(row, "row 1"), FieldNames())
    Path("rows.json").write_text(json.dumps([row, {**row, "answers": ["Porto"]}]))
    found = tasks(
        {"name": "file", "path": "rows.json", "skip_bad_rows": True}, LongcontextEnv(LongcontextOptions(), ())
    )
    assert [task.answers for task in found.tasks] == [("Porto",)] and told in found.skipped[0]


@settings(max_examples=100, deadline=None)
@given(st.text("[](){}'\",ab1 \\\n", max_size=12))
def test_a_text_that_may_be_a_list_is_read_or_told(text):
    for one in (text, f"array([{text}])"):
        try:
            found = listed_texts(one)
        except DataError:
            continue
        assert found is None or (found and all(str(value).strip() for value in found))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=4))
def test_what_json_and_python_write_of_a_list_is_read_back(texts):
    assert listed_texts(json.dumps(texts)) == texts
    assert listed_texts(str(texts)) == texts
    assert listed_texts(str(texts).replace("', '", "'\n '")) in (texts, None) or "', '" in "".join(texts)


def test_a_gold_answer_that_is_no_number_is_an_error(here):
    nan = float("nan")
    with pytest.raises(DataError, match=r"field 'answers' should be a text, got the number nan"):
        read_task(Row({"input": "?", "context": "c", "answers": nan}, "row 1"), FieldNames())
    session = [{"role": "user", "content": "I have 3 cats"}]
    row = {"question_id": "q1", "question_type": "multi-session", "question": "How many?", "answer": nan}
    row |= {"question_date": "2023/05/30 (Tue) 23:40", "haystack_session_ids": ["s1"], "answer_session_ids": ["s1"]}
    row |= {"haystack_dates": ["2023/05/20 (Sat) 02:21"], "haystack_sessions": [session]}
    Path("long.json").write_text(json.dumps([row, {**row, "answer": 3}]))
    found = tasks({"name": "longmemeval", "path": "long.json", "skip_bad_rows": True})
    assert [task.answers for task in found.tasks] == [("3",)]
    assert found.skipped == ("long.json row 1: field 'answer' should be a text or a number, got the number nan",)


def test_an_id_that_is_no_number_is_left_to_the_question():
    row = {"input": "Where?", "context": "c", "answers": "x", "index": float("nan"), "length": float("inf")}
    task = read_task(Row(row, "row 1"), FieldNames())
    assert task.id != "nan" and "length" not in task.meta and "index" not in task.meta


# LoCoMo


def locomo(*questions, **changes):
    told = {"session_1": [{"speaker": "Ann", "dia_id": "D1:1", "text": "I live in Oslo."}], "session_1_date_time": "x"}
    return {"sample_id": "conv-1", "conversation": told, "qa": list(questions), **changes}


def asked(**changes):
    return {"question": "Where?", "answer": "Oslo", "evidence": ["D1:1"], "category": 4, **changes}


def test_a_category_of_locomo_may_be_written_as_text(here):
    Path("locomo.json").write_text(json.dumps([locomo(asked(category="4"))]))
    (task,) = tasks({"name": "locomo", "path": "locomo.json"}).tasks
    assert task.meta["category"] == 4 and task.answers == ("Oslo",)


def test_a_gold_answer_of_locomo_may_be_a_number_of_any_size(here):
    Path("locomo.json").write_text(json.dumps([locomo(asked(answer=10**400), asked(answer=2.5))]))
    assert [task.answers for task in tasks({"name": "locomo", "path": "locomo.json"}).tasks] == [
        (str(10**400),),
        ("2.5",),
    ]


def test_bad_questions_and_conversations_of_locomo_can_be_left_out(here):
    bad = [asked(category=9), asked(answer=float("nan")), asked(), asked(question="")]
    second = locomo(asked(), sample_id="conv-2", conversation=7)
    Path("locomo.json").write_text(json.dumps([locomo(*bad), second]))
    with pytest.raises(DataError, match="category"):
        tasks({"name": "locomo", "path": "locomo.json"})
    found = tasks({"name": "locomo", "path": "locomo.json", "skip_bad_rows": True})
    assert [task.id for task in found.tasks] == ["conv-1/2"]
    assert found.skipped == (
        "locomo.json: row 1 (conv-1): question 0: field 'category' should be 1, 2, 3, 4 or 5, got the number 9",
        "locomo.json: row 1 (conv-1): question 1: field 'answer' should be a text or a number, got the number nan",
        "locomo.json: row 1 (conv-1): question 3: field 'question' should be a text, got an empty text",
        "locomo.json: row 2 (conv-2): field 'conversation' should be an object, got the number 7",
    )


# Evidence


def test_evidence_that_is_nowhere_is_left_out_and_counted(here):
    rows = [
        {"question": "Where?", "answer": "Oslo", "conversation": TALK, "evidence": evidence}
        for evidence in (["D9:9"], ["D1:1", "D9:9"], ["D1:1"])
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tasks("rows.jsonl")
    assert [task.evidence for task in found.tasks] == [(), ("D1:1",), ("D1:1",)]
    (note,) = found.notes
    assert note.startswith("2 of 3 tasks name evidence that is neither a turn of their conversation")
    reward = REWARDS.get("evidence_recall")(REWARDS.options("evidence_recall")(), {})
    item = MemoryItem("m1", "", "I live in Oslo.", sources=("D1:1",))
    assert reward.score([Episode(task, retrieved=(item,)) for task in found.tasks]) == [None, 1.0, 1.0]


def test_evidence_may_be_a_source_of_the_memory():
    memory = [{"id": "m1", "value": "x", "sources": ["D3:1"]}]
    row = Row({"question": "Where?", "answer": "Oslo", "memory": memory, "evidence": ["D3:1"]}, "row 1")
    assert BANK.task(row).evidence == ("D3:1",)


# Spellings of accents


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["em", "sub_em", "f1", "mem0_f1", "mem0_em", "bleu1", "locomo_f1", "string_match_all"])
def test_an_answer_is_right_however_its_accents_are_spelt(name, form):
    options = REWARDS.options(name)
    other = "NFD" if form == "NFC" else "NFC"
    task = Task("t", "Who?", (normalize(other, "José Müller"),))
    (score,) = REWARDS.get(name)(options(), {}).score([Episode(task, answer=normalize(form, "José Müller"))])
    assert score == pytest.approx(1)


def test_boxed_answers_are_right_however_their_accents_are_spelt():
    task = Task("t", "Who?", (normalize("NFD", "José"),))
    reward = REWARDS.get("boxed_em")(REWARDS.options("boxed_em")(), {})
    assert reward.score([Episode(task, answer="José", answer_text="\\boxed{José}")]) == [1.0]


def test_search_by_words_finds_a_text_however_its_accents_are_spelt():
    postings = Postings([normalize("NFD", "José likes tea"), "Ann likes cake"])
    scores, _ = postings.scores(normalize("NFC", "José"), None, [])
    assert scores[0] > 0 and scores[1] == 0


# Surrogates


def test_half_of_a_surrogate_pair_is_told_by_the_row(here):
    session = [{"role": "user", "content": "half \ud83d"}]
    row = {"question_id": "q1", "question_type": "multi-session", "question": "How many?", "answer": "3"}
    row |= {"question_date": "2023/05/30 (Tue) 23:40", "haystack_session_ids": ["s1"], "answer_session_ids": ["s1"]}
    row |= {"haystack_dates": ["2023/05/20 (Sat) 02:21"], "haystack_sessions": [session]}
    Path("long.json").write_text(json.dumps([row]))
    problem = r"long\.json row 1: field 'haystack_sessions\[0\]\[0\]\.content' should be a text, but character 5 is"
    with pytest.raises(DataError, match=problem):
        build_longmemeval(Path("long.json"), Path("out"), LongMemEvalForm())
    assert not list(Path("out").glob("*"))


def test_a_row_with_half_of_a_surrogate_pair_is_not_written(here):
    rows = [{"id": "q1", "context": "whole"}, {"id": "q2", "context": "half \ud83d"}]
    with pytest.raises(DataError, match=r"row q2 holds half of a surrogate pair behind .*half"):
        write_rows(Path("rows.jsonl"), rows, 2)
    assert not list(Path().glob("*"))

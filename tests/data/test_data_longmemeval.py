"""LongMemEval as rows: histories by date, evidence by turn, what does not fit; made-up rows of the same shape."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from memfactory.cli.app import app
from memfactory.data.base import Row
from memfactory.data.benchmarks.longmemeval import LongMemEvalForm, rows_of
from memfactory.errors import DataError
from memfactory.registry import DATASETS, ENVS

REAL = os.environ.get("MEMFACTORY_DATA")
LENGTHS = "haystack_sessions, haystack_session_ids and haystack_dates should be lists of one length"


def said(role, content, **extra):
    return {"role": role, "content": content, **extra}


def question(id="q1", **changes):
    """Two sessions, the later one first, as the oracle file has them; "late" and "early" both hold the answer."""
    return {
        "question_id": id,
        "question_type": "knowledge-update",
        "question": "How many bikes do I own?",
        "answer": 3,
        "question_date": "2023/06/01 (Thu) 00:58",
        "haystack_session_ids": ["late", "early"],
        "haystack_dates": ["2023/05/30 (Tue) 20:21", "2023/05/30 (Tue) 10:20"],
        "haystack_sessions": [
            [said("user", "A third bike!", has_answer=True), said("assistant", "Nice.", has_answer=False)],
            [said("user", " "), said("assistant", "Well?"), said("user", "Two bikes.", has_answer=True)],
        ],
        "answer_session_ids": ["late", "early"],
        **changes,
    }


def write(path, *questions):
    path.write_text(json.dumps(list(questions)))
    return path


def rows(path, **options):
    options = DATASETS.options("longmemeval")(path=str(path), **options)
    return list(DATASETS.get("longmemeval")(options, Path()).rows())


def one(tmp_path, **changes):
    (row,) = rows(write(tmp_path / "q.json", question(**changes)))
    assert row.problem is None
    return row.values


def test_a_row_has_its_sessions_by_date_and_names_for_its_turns(tmp_path):
    row = dict(one(tmp_path))
    conversation = row.pop("conversation")
    # The early session's first turn says nothing and is left out; the numbers stay those of the file.
    assert [turn["dia_id"] for turn in conversation] == ["early:2", "early:3", "late:1", "late:2"]
    assert conversation[1] == {
        "speaker": "user",
        "text": "Two bikes.",
        "timestamp": "2023/05/30 (Tue) 10:20",
        "dia_id": "early:3",
        "session": "early",
    }
    assert row == {
        "id": "q1",
        "kind": "longmemeval",
        "category": "knowledge-update",
        "question_type": "knowledge-update",
        "abstention": False,
        "question": "Asked on 2023/06/01 (Thu) 00:58: How many bikes do I own?",
        "answers": ["3"],
        "evidence": ["early:3", "late:1"],
        "answer_session_ids": ["late", "early"],
    }


def test_sessions_of_one_date_stay_in_the_order_of_the_file(tmp_path):
    row = one(tmp_path, haystack_dates=["2023/05/30 (Tue) 20:21"] * 2)
    assert [turn["session"] for turn in row["conversation"]] == ["late", "late", "early", "early"]


def test_evidence_by_session_is_every_turn_of_the_sessions_that_answer(tmp_path):
    path = write(tmp_path / "q.json", question(answer_session_ids=["early"]))
    (row,) = rows(path, evidence="sessions")
    assert row.values["evidence"] == ["early:2", "early:3"]


def test_abstention_has_no_evidence(tmp_path):
    row = one(tmp_path, question_id="q1_abs")
    assert row["abstention"] is True and row["evidence"] == []
    (row,) = rows(tmp_path / "q.json", evidence="sessions")
    assert row.values["evidence"] == []


def test_a_session_id_that_occurs_again_gets_a_number(tmp_path):
    row = one(tmp_path, haystack_session_ids=["late", "late"])
    assert [turn["dia_id"] for turn in row["conversation"]] == ["late#2:2", "late#2:3", "late:1", "late:2"]


def test_types_and_limit_choose_rows(tmp_path):
    kinds = ["multi-session", "knowledge-update", "multi-session", "temporal-reasoning"]
    questions = [question(f"q{number}", question_type=kind) for number, kind in enumerate(kinds)]
    path = write(tmp_path / "q.json", *questions)
    assert [row.values["id"] for row in rows(path, question_types=["multi-session"])] == ["q0", "q2"]
    assert [row.values["id"] for row in rows(path, question_types=["multi-session"], limit=1)] == ["q0"]
    with pytest.raises(ValueError, match="question_types"):
        rows(path, question_types=["single-session"])


def test_the_memory_environment_reads_the_rows(tmp_path):
    options = DATASETS.options("longmemeval")(path=str(write(tmp_path / "q.json", question())))
    environment = ENVS.get("memory_bank")(ENVS.options("memory_bank")(), [])
    (task,) = environment.tasks(DATASETS.get("longmemeval")(options, Path())).tasks
    assert task.answers == ("3",) and task.evidence == ("early:3", "late:1")
    assert task.meta["question_type"] == task.meta["category"] == "knowledge-update"
    assert task.conversation[0].session == "early"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_id": ""}, "field 'question_id' should be a text, got an empty text"),
        ({"question_date": None}, "field 'question_date' should be a text, got null"),
        ({"answer": None}, "field 'answer' should be a text or a number, got null"),
        ({"answer": True}, "field 'answer' should be a text or a number, got true"),
        ({"answer_session_ids": [1]}, "field 'answer_session_ids[0]' should be a text, got the number 1"),
        (
            {"haystack_session_ids": ["late"]},
            f"{LENGTHS}, got lengths 2, 1 and 2",
        ),
        (
            {"haystack_sessions": None},
            "field 'haystack_sessions' should be a list of sessions, got null",
        ),
        (
            {"haystack_dates": ["2023/05/30 (Tue) 20:21", "yesterday"]},
            "field 'haystack_dates[1]' should be a date such as '2023/05/30 (Tue) 08:08', got the text 'yesterday'",
        ),
        ({"haystack_sessions": [[], "x"]}, "field 'haystack_sessions[1]' should be a list, got the text 'x'"),
        (
            {"haystack_sessions": [[], [{"role": "user"}]]},
            "field 'haystack_sessions[1][0]' has no field 'content'; it has role",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_told_and_can_be_left_out(tmp_path, changes, message):
    path = write(tmp_path / "q.json", question(), question("q2", **{"question_id": "q2", **changes}))
    good, bad = rows(path)
    assert good.problem is None and (bad.source, bad.problem) == (f"{path} row 2", message)
    environment = ENVS.get("memory_bank")(ENVS.options("memory_bank")(), [])
    options = DATASETS.options("longmemeval")(path=str(path), skip_bad_rows=True)
    found = environment.tasks(DATASETS.get("longmemeval")(options, Path()))
    assert len(found.tasks) == 1 and found.skipped == (f"{path} row 2: {message}",)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(["", "x", "2023/05/30 (Tue) 20:21"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner, max_size=2)
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*question()]), JSON_VALUES, max_size=4))
def test_whatever_a_row_holds_it_is_read_or_has_a_problem(changes):
    (row,) = rows_of([Row({**question(), **changes}, "here")], LongMemEvalForm())
    assert (row.problem is None) == bool(row.values)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no such file(.|\n)*xiaowu0162/longmemeval-cleaned \(MIT\)"):
        rows(tmp_path / "none.json")
    with pytest.raises(DataError, match="has no questions"):
        rows(write(tmp_path / "q.json"))


def run(*arguments):
    return CliRunner().invoke(app, ["data", "longmemeval", *map(str, arguments)])


def test_the_command_writes_the_rows_of_the_dataset(tmp_path):
    path = write(tmp_path / "lme_oracle.json", question(), question("q2", question_type="multi-session"))
    result = run(path, "--output", tmp_path, "--type", "multi-session", "--evidence", "sessions")
    assert result.exit_code == 0, result.output
    (row,) = [json.loads(line) for line in (tmp_path / "lme_oracle.jsonl").read_text().splitlines()]
    assert row == rows(path, evidence="sessions")[1].values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--type", "multi-sesion"], "no type of question is called 'multi-sesion'; did you mean 'multi-session'?"),
        (["--evidence", "all"], "--evidence all: expected turns or sessions"),
        (["--type", "multi-session"], "has no questions of the types multi-session"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(tmp_path, arguments, message):
    result = run(write(tmp_path / "q.json", question()), "--output", tmp_path, *arguments)
    assert result.exit_code != 0 and message in str(result.exception)
    assert not (tmp_path / "q.jsonl").exists()


def test_the_command_stops_at_a_bad_row_and_never_overwrites_its_source(tmp_path):
    path = write(tmp_path / "q.json", question(), question("q2", answer=None))
    result = run(path, "--output", tmp_path)
    assert "row 2: field 'answer' should be" in str(result.exception) and not (tmp_path / "q.jsonl").exists()
    lines = tmp_path / "q.jsonl"
    lines.write_text(json.dumps(question()) + "\n")
    result = run(lines, "--output", tmp_path)
    assert "would be overwritten by its own rows" in str(result.exception)
    assert json.loads(lines.read_text())["question_id"] == "q1"


@pytest.mark.skipif(not REAL, reason="MEMFACTORY_DATA names no folder with the real LongMemEval")
def test_the_real_sample_is_read_and_converted(tmp_path):
    path = Path(REAL) / "longmemeval" / "longmemeval_sample_2rows.json"
    update, abstention = (row.values for row in rows(path))
    assert [len(row["conversation"]) for row in (update, abstention)] == [24, 24]
    assert len(update["evidence"]) == 2 and update["category"] == "knowledge-update"
    assert abstention["abstention"] and abstention["evidence"] == []
    result = run(path, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "longmemeval_sample_2rows.jsonl").read_text().splitlines()) == 2

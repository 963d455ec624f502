"""LoCoMo as rows: Memory-R1's split, and everything that the file has wrong, on a made-up file of the same shape."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from memfactory.cli.app import app
from memfactory.data.benchmarks.locomo import LocomoForm, build_locomo
from memfactory.data.benchmarks.locomo_source import CATEGORIES, read_conversations
from memfactory.errors import DataError
from memfactory.registry import DATASETS, ENVS

REAL = os.environ.get("MEMFACTORY_DATA")
real = pytest.mark.skipif(not REAL, reason="MEMFACTORY_DATA names no folder with the real LoCoMo")
CATEGORY = "temporal (tables: Temporal)"


def turn(id, speaker="Ann", **extra):
    return {"speaker": speaker, "dia_id": id, "text": f"{speaker} says {id}.", **extra}


def asked(category=4, evidence=("D1:1",), answer="yes", question="What?", **extra):
    row = {"question": question, "evidence": list(evidence), "category": category, **extra}
    return row if answer is None else {**row, "answer": answer}


def sample(id="conv-1", questions=(), **sessions):
    """Ann and Bob in two sessions of three and two turns; the file also has the date of a third session."""
    return {
        "sample_id": id,
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_1_date_time": "1:05 pm on 2 May, 2023",
            "session_1": [
                turn("D1:1"),
                turn("D1:2", "Bob", blip_caption="a red kite", query="kite photo", img_url=["x"]),
                turn("D1:3"),
            ],
            "session_2_date_time": "9:00 am on 3 May, 2023",
            "session_2": [turn("D2:1", "Bob"), turn("D2:2")],
            "session_3_date_time": "9:00 am on 4 May, 2023",
            **sessions,
        },
        "qa": list(questions) or [asked()],
        "event_summary": {},
    }


def write(path, *samples):
    path.write_text(json.dumps(list(samples)))
    return str(path)


def rows(path, **options):
    options = {"path": str(path), "split": "all", **options}
    return [row.values for row in DATASETS.get("locomo")(DATASETS.options("locomo")(**options), Path()).rows()]


def one(tmp_path, *questions, **options):
    return rows(write(tmp_path / "l.json", sample(questions=questions)), **options)


def test_a_row_holds_the_whole_conversation_and_the_question(tmp_path):
    (row,) = one(tmp_path, asked(2, ["D2:1"], "3 May"))
    conversation = row.pop("conversation")
    assert row == {
        "id": "conv-1/0",
        "kind": "locomo",
        "conversation_id": "conv-1",
        "category": 2,
        "category_name": CATEGORY,
        "question": "What?",
        "answers": ["3 May"],
        "evidence": ["D2:1"],
    }
    assert [utterance["dia_id"] for utterance in conversation] == ["D1:1", "D1:2", "D1:3", "D2:1", "D2:2"]
    assert conversation[3] == {
        "speaker": "Bob",
        "text": "Bob says D2:1.",
        "timestamp": "9:00 am on 3 May, 2023",
        "dia_id": "D2:1",
        "session": "session_2",
    }


def test_captions_stand_behind_the_text_and_queries_nowhere(tmp_path):
    (row,) = one(tmp_path, asked())
    assert row["conversation"][1]["text"] == "Bob says D1:2. [shares an image: a red kite]"
    assert "kite photo" not in json.dumps(row)
    (row,) = one(tmp_path, asked(), captions=False)
    assert row["conversation"][1]["text"] == "Bob says D1:2."


def test_sessions_are_in_order_of_their_numbers(tmp_path):
    later = {f"session_{number}": [turn(f"D{number}:1")] for number in (11, 10, 9)}
    path = write(tmp_path / "l.json", sample(**later))
    ids = [utterance["dia_id"] for utterance in rows(path)[0]["conversation"]]
    assert ids == ["D1:1", "D1:2", "D1:3", "D2:1", "D2:2", "D9:1", "D10:1", "D11:1"]


def test_answers_may_be_numbers(tmp_path):
    assert [row["answers"] for row in one(tmp_path, asked(answer=2022), asked(1, answer=3))] == [["2022"], ["3"]]


def test_adversarial_questions_come_only_when_asked_for_and_are_answered_by_declining(tmp_path):
    questions = [asked(5, answer=None, adversarial_answer="Bob"), asked(5, answer="No"), asked(4)]
    assert [row["category"] for row in one(tmp_path, *questions)] == [4]
    found = one(tmp_path, *questions, categories=[5])
    assert [row["answers"] for row in found] == [
        ["Not mentioned in the conversation"],
        ["Not mentioned in the conversation", "No"],
    ]


@pytest.mark.parametrize(
    ("written", "evidence", "note"),
    [
        (["D1:1", "D2:1", "D1:1"], ["D1:1", "D2:1"], None),
        ([], [], "conv-1/0: no evidence"),
        (["D1:3; D2:1"], ["D1:3", "D2:1"], "conv-1/0: evidence 'D1:3; D2:1' is read as D1:3, D2:1"),
        (
            ["D1:1 D1:2 D2:2"],
            ["D1:1", "D1:2", "D2:2"],
            "conv-1/0: evidence 'D1:1 D1:2 D2:2' is read as D1:1, D1:2, D2:2",
        ),
        (["D:1:2"], ["D1:2"], "conv-1/0: evidence 'D:1:2' is read as D1:2"),
        (["D2:02"], ["D2:2"], "conv-1/0: evidence 'D2:02' is read as D2:2"),
        (["D1:1", "D"], ["D1:1"], "conv-1/0: evidence 'D' is not the id of a turn and is left out"),
        (["D1:9"], [], "conv-1/0: evidence 'D1:9' names no turn and is left out"),
        (["D1:1 D1:9"], ["D1:1"], "conv-1/0: evidence 'D1:1 D1:9' is read as D1:1"),
        ([None, 7], [], "conv-1/0: evidence 7 is not the id of a turn and is left out"),
    ],
)
def test_evidence_is_mended_or_left_out_with_a_note(tmp_path, written, evidence, note):
    path = write(tmp_path / "l.json", sample(questions=[asked(evidence=written)]))
    (conversation,) = read_conversations(path)
    assert list(conversation.questions[0].evidence) == evidence
    assert conversation.notes[0] == "conv-1: 1 session dates without a session are left out"
    assert (conversation.notes[-1] == note) if note else len(conversation.notes) == 1


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("D:;12 0x", max_size=12),
    lambda inner: st.lists(inner, max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(JSON_VALUES)
def test_whatever_stands_for_evidence_only_turns_that_are_there_are_kept_each_once(tmp_path_factory, written):
    path = write(tmp_path_factory.getbasetemp() / "any.json", sample(questions=[{**asked(), "evidence": written}]))
    (conversation,) = read_conversations(path)
    evidence = conversation.questions[0].evidence
    assert len(set(evidence)) == len(evidence) and set(evidence) <= {turn.id for turn in conversation.turns}
    assert evidence or len(conversation.notes) > 1


def test_equal_questions_have_ids_of_their_own(tmp_path):
    assert [row["id"] for row in one(tmp_path, asked(), asked())] == ["conv-1/0", "conv-1/1"]


def split_file(tmp_path):
    ids = ("conv-26", "conv-30", "conv-41", "conv-50")
    return write(tmp_path / "l.json", *(sample(id, [asked()] * n) for n, id in enumerate(ids, start=1)))


@pytest.mark.parametrize(
    ("split", "conversations"),
    [
        ("train", ["conv-26"]),
        ("val", ["conv-30"] * 2),
        ("test", ["conv-41"] * 3 + ["conv-50"] * 4),
        ("all", ["conv-26"] + ["conv-30"] * 2 + ["conv-41"] * 3 + ["conv-50"] * 4),
        ("conv-41", ["conv-41"] * 3),
        (["conv-30", "conv-26"], ["conv-30"] * 2 + ["conv-26"]),
    ],
)
def test_the_split_is_by_conversation(tmp_path, split, conversations):
    path = split_file(tmp_path)
    assert [row["conversation_id"] for row in rows(path, split=split)] == conversations
    assert len(rows(path, split=split, limit=1)) == 1


def test_the_default_is_the_test_split(tmp_path):
    assert DATASETS.options("locomo")().split == "test"


def test_rows_of_a_conversation_share_one_list_so_that_their_tasks_share_one_tuple(tmp_path):
    first, second, other = rows(write(tmp_path / "l.json", sample(questions=[asked()] * 2), sample("conv-2")))
    assert first["conversation"] is second["conversation"] and other["conversation"] is not first["conversation"]


def test_a_tuple_has_the_turns_before_as_its_bank_and_the_new_turns_of_one_session(tmp_path):
    question = asked(evidence=["D2:2", "D1:2"])
    (row,) = one(tmp_path, question, form="tuples", window=2)
    # The last evidence is D2:2; the new turns are those of session 2 up to it, the bank the two before these.
    assert [utterance["dia_id"] for utterance in row["fact"]] == ["D2:1", "D2:2"]
    assert [item["id"] for item in row["memory"]] == ["D1:2", "D1:3"]
    assert row["memory"][0] == {
        "id": "D1:2",
        "key": "",
        "value": "Bob: Bob says D1:2. [shares an image: a red kite]",
        "kind": "turn",
        "tags": [],
        "sources": ["D1:2"],
        "created_at": "1:05 pm on 2 May, 2023",
        "version": 1,
        "namespace": "",
    }
    assert "conversation" not in row and row["evidence"] == ["D2:2", "D1:2"]
    (row,) = one(tmp_path, question, form="tuples", fact_turns=1, namespaces="speaker")
    assert [utterance["dia_id"] for utterance in row["fact"]] == ["D2:2"]
    assert [item["namespace"] for item in row["memory"]] == ["Ann", "Bob", "Ann", "Bob"]


def test_the_first_turn_has_an_empty_bank(tmp_path):
    (row,) = one(tmp_path, asked(), form="tuples")
    assert row["memory"] == [] and [utterance["dia_id"] for utterance in row["fact"]] == ["D1:1"]


def test_a_replay_ends_with_the_session_of_the_last_evidence(tmp_path):
    first, second, third = one(tmp_path, asked(), asked(evidence=["D1:1", "D2:1"]), asked(), form="replay")
    assert [utterance["dia_id"] for utterance in first["conversation"]] == ["D1:1", "D1:2", "D1:3"]
    assert len(second["conversation"]) == 5 and "memory" not in second
    assert first["conversation"] is third["conversation"]


def test_a_window_ends_with_the_turn_of_the_last_evidence(tmp_path):
    (row,) = one(tmp_path, asked(evidence=["D1:1", "D2:1"]), form="window", window=2)
    assert [utterance["dia_id"] for utterance in row["conversation"]] == ["D1:2", "D1:3", "D2:1"]
    assert "memory" not in row
    assert LocomoForm(form="window", fact_turns=2).without_effect() == {
        "fact_turns": "form is window",
        "namespaces": "form is window",
    }


@pytest.mark.parametrize("form", ["tuples", "replay", "window"])
def test_a_question_without_evidence_has_no_turn_to_train_at(tmp_path, form):
    assert [row["id"] for row in one(tmp_path, asked(evidence=[]), asked(), form=form)] == ["conv-1/1"]
    assert len(one(tmp_path, asked(evidence=[]), asked())) == 2


@pytest.mark.parametrize("form", ["questions", "tuples", "replay", "window"])
@pytest.mark.parametrize("env", ["memory_bank", "rerank"])
def test_the_memory_environments_read_every_form(tmp_path, form, env):
    path = write(tmp_path / "l.json", sample(questions=[asked(2, ["D2:1"], 7), asked(2, ["D2:1"], 7)]))
    options = DATASETS.options("locomo")(path=path, split="all", form=form)
    environment = ENVS.get(env)(ENVS.options(env)(), [])
    first, second = environment.tasks(DATASETS.get("locomo")(options, Path())).tasks
    assert (first.id, first.question, first.answers, first.evidence) == ("conv-1/0", "What?", ("7",), ("D2:1",))
    meta = {"kind": "locomo", "category": 2, "category_name": CATEGORY, "conversation": "conv-1"}
    assert dict(first.meta) == meta
    assert [item.sources for item in first.memory] == ([("D1:1",), ("D1:2",), ("D1:3",)] if form == "tuples" else [])
    assert [utterance.id for utterance in first.conversation][-1] == (
        "D2:1" if form in ("tuples", "window") else "D2:2"
    )
    assert first.conversation[-1].time == "9:00 am on 3 May, 2023"
    assert first.conversation is second.conversation and first.memory is second.memory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_id": None}, "row 1: field 'sample_id' should be a text, got null. LoCoMo is data/locomo10.json"),
        ({"conversation": []}, "row 1 (conv-1): field 'conversation' should be an object, got an empty list"),
        ({"conversation": {}}, "row 1 (conv-1): the conversation has no sessions; expected session_1, session_2"),
        ({"qa": {}}, "row 1 (conv-1): field 'qa' should be a list of questions, got an empty object"),
        (
            {"qa": [asked(6)]},
            "row 1 (conv-1): question 0: field 'category' should be 1, 2, 3, 4 or 5, got the number 6",
        ),
        ({"qa": [asked(True)]}, "row 1 (conv-1): question 0: field 'category' should be 1, 2, 3, 4 or 5, got true"),
        ({"qa": ["x"]}, "row 1 (conv-1): question 0 should be an object with fields, got the text 'x'"),
        (
            {"qa": [asked(answer=None)]},
            "row 1 (conv-1): question 0 has no field 'answer'; it has question, evidence, category",
        ),
        (
            {"conversation": {"session_1": [turn("D1:1", speaker=7)]}},
            "row 1 (conv-1): field 'session_1[0].speaker' should be a text, got the number 7",
        ),
        (
            {"conversation": {"session_1": [turn("D1:1"), turn("D1:1")]}},
            "row 1 (conv-1): two turns have the dia_id 'D1:1'",
        ),
        ({"conversation": {"session_1": "x"}}, "row 1 (conv-1): field 'session_1' should be a list, got the text 'x'"),
    ],
)
def test_a_file_that_does_not_fit_is_told_with_its_place(tmp_path, change, message):
    path = write(tmp_path / "l.json", {**sample(), **change})
    with pytest.raises(DataError) as caught:
        rows(path)
    assert str(caught.value).startswith(f"{path} {message}")


def test_missing_files_conversations_and_categories_are_told(tmp_path):
    with pytest.raises(DataError, match=r"no such file(.|\n)*snap-research/locomo \(CC BY-NC 4.0\)"):
        rows(tmp_path / "none.json")
    path = write(tmp_path / "l.json", sample())
    with pytest.raises(
        DataError, match=r"split train: no conversation is called 'conv-26'.*There are: all, conv-1, test"
    ):
        rows(path, split="train")
    with pytest.raises(DataError, match="two conversations with the sample_id 'conv-1'"):
        rows(write(tmp_path / "l.json", sample(), sample()))
    with pytest.raises(DataError, match="has no conversations"):
        rows(write(tmp_path / "l.json"))
    with pytest.raises(ValueError, match=r"there is no category 6; LoCoMo's are 1, 2, 3, 4, 5"):
        DATASETS.options("locomo")(categories=[6])


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_writes_tuples_to_train_on_and_questions_to_evaluate_with(tmp_path):
    questions = [asked(), asked(evidence=[]), asked(5, answer=None)]
    ids = ("conv-26", "conv-30", "conv-41", "conv-42")
    path = write(tmp_path / "l.json", *(sample(id, questions) for id in ids))
    result = CliRunner().invoke(app, ["data", "locomo", path, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "2 train, 2 val, 4 test questions of categories 1, 2, 3, 4 (none is adversarial)" in result.output
    assert "1 training questions have no evidence and are left out" in result.output
    assert "1 of 1 tuples hold all their evidence in memory and fact" in result.output
    assert "conv-42/1: no evidence" in result.output
    (train,) = read_lines(tmp_path / "out" / "locomo_train.jsonl")
    assert train["id"] == "conv-26/0" and train["memory"] == [] and len(train["fact"]) == 1
    test = read_lines(tmp_path / "out" / "locomo_test.jsonl")
    assert [row["id"] for row in test] == ["conv-41/0", "conv-41/1", "conv-42/0", "conv-42/1"]
    assert all(len(row["conversation"]) == 5 for row in test)
    assert len(read_lines(tmp_path / "out" / "locomo_val.jsonl")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--form", "rows"], "--form rows: expected tuples, window, replay or questions"),
        ([], "no conversation is called"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(tmp_path, arguments, message):
    path = write(tmp_path / "l.json", sample("conv-30"))
    result = CliRunner().invoke(app, ["data", "locomo", path, "--output", str(tmp_path / "out"), *arguments])
    assert result.exit_code != 0 and message in str(result.exception)
    assert not (tmp_path / "out").exists()


@real
def test_the_real_file_has_its_published_counts():
    # Questions of categories 1 to 5 by conversation.
    published = {
        "conv-26": (32, 37, 13, 70, 47),
        "conv-30": (11, 26, 0, 44, 24),
        "conv-41": (31, 27, 8, 86, 41),
        "conv-42": (37, 40, 11, 111, 61),
        "conv-43": (31, 26, 14, 107, 64),
        "conv-44": (30, 24, 7, 62, 35),
        "conv-47": (20, 34, 13, 83, 40),
        "conv-48": (21, 42, 10, 118, 48),
        "conv-49": (37, 33, 13, 73, 40),
        "conv-50": (32, 32, 7, 87, 46),
    }
    conversations = read_conversations(str(Path(REAL) / "locomo" / "locomo10.json"))
    counts = {
        conversation.id: tuple(sum(q.category == category for q in conversation.questions) for category in CATEGORIES)
        for conversation in conversations
    }
    assert counts == published
    turns = [turn for conversation in conversations for turn in conversation.turns]
    lengths = [len(conversation.turns) for conversation in conversations]
    assert (min(lengths), max(lengths), len(turns)) == (369, 689, 5882)
    assert sum(turn.caption is not None for turn in turns) == 1226
    sessions = [max(turn.session for turn in conversation.turns) for conversation in conversations]
    assert (min(sessions), max(sessions)) == (19, 32)
    questions = [question for conversation in conversations for question in conversation.questions]
    assert sum(len(question.answers) == 2 for question in questions) == 2
    # 4 empty and 2 dangling ids of evidence, 1 that is not an id, 6 that are written otherwise, dates without sessions.
    notes = [note for conversation in conversations for note in conversation.notes]
    kinds = ("no evidence", "names no turn", "is not the id", "is read as", "session dates")
    assert [sum(kind in note for note in notes) for kind in kinds] == [4, 2, 1, 6, 1]
    assert sum(not question.evidence for question in questions if question.category != 5) == 4


@real
@pytest.mark.parametrize(("split", "count"), [("train", 152), ("val", 81), ("test", 1307), ("all", 1540)])
def test_the_real_splits_have_memory_r1s_sizes(split, count):
    path = Path(REAL) / "locomo" / "locomo10.json"
    found = rows(path, split=split)
    assert len(found) == len({row["id"] for row in found}) == count
    # Memory-R1's tables give their shares in these sizes of the test split's categories.
    if split == "test":
        by_category = [sum(row["category"] == category for row in found) for category in (1, 2, 3, 4)]
        assert by_category == [239, 258, 83, 727]


@real
def test_the_command_converts_the_real_file(tmp_path):
    path = Path(REAL) / "locomo" / "locomo10.json"
    result = CliRunner().invoke(app, ["data", "locomo", str(path), "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "152 train, 81 val, 1307 test questions" in result.output
    train = read_lines(tmp_path / "locomo_train.jsonl")
    assert len(train) == 150 and all(len(row["memory"]) <= 50 and 1 <= len(row["fact"]) <= 4 for row in train)
    for name, count in (("val", 81), ("test", 1307)):
        path = tmp_path / f"locomo_{name}.jsonl"
        with open(path, "rb") as file:
            assert sum(1 for _ in file) == count
        path.unlink()  # 200 MB


@real
def test_a_replay_of_the_real_training_conversation_shares_its_beginnings():
    report_rows = rows(Path(REAL) / "locomo" / "locomo10.json", split="train", form="replay")
    assert len(report_rows) == 150
    assert len({id(row["conversation"]) for row in report_rows}) <= 19


def test_files_hold_equal_bytes_for_equal_arguments(tmp_path):
    path = split_file(tmp_path)
    first = build_locomo(Path(path), tmp_path / "a", LocomoForm(form="replay"))
    second = build_locomo(Path(path), tmp_path / "b", LocomoForm(form="replay"))
    assert [file.sha256 for file in first.files] == [file.sha256 for file in second.files]

"""HotpotQA over a few paragraphs: splits that share nothing, evidence, choice of questions; made-up questions."""

import json
import os
from pathlib import Path

import pytest

from memfactory.data.benchmarks.hotpotqa_rows import HotpotQaOptions
from memfactory.errors import DataError
from memfactory.registry import DATASETS, ENVS

REAL = os.environ.get("MEMFACTORY_DATA")


def question(number, **changes):
    """A question with two supporting paragraphs (titles a and b) and four others."""
    titles = [f"T{number}{letter}" for letter in "abcdef"]
    return {
        "_id": f"id{number}",
        "question": f"What is number {number}?",
        "answer": f"answer {number}",
        "type": "comparison" if number % 3 == 0 else "bridge",
        "supporting_facts": [[titles[1], 1], [titles[0], 0]],
        "context": [[title, [f"{title} is one.", f" {title} is two."]] for title in titles],
        **changes,
    }


def write(path, questions):
    path.write_text(json.dumps(questions))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "hotpot.json", [question(number) for number in range(40)])


def rows(path, **options):
    options = HotpotQaOptions(path=str(path), **options)
    return list(DATASETS.get("hotpotqa")(options, Path()).rows())


def titles(*rows):
    return {paragraph.partition("\n")[0] for row in rows for paragraph in row.values["context"].split("\n\n")}


def ids(rows):
    return {row.values["id"] for row in rows}


def test_a_row_has_both_supporting_paragraphs_and_a_few_of_its_own(file):
    row = next(row for row in rows(file, split="all") if row.values["id"] == "id7")
    assert row.values["num_docs"] == len(row.values["context"].split("\n\n")) == 4
    assert titles(row) > {"T7a", "T7b"} and titles(row) <= {f"T7{letter}" for letter in "abcdef"}
    assert "T7a\nT7a is one. T7a is two." in row.values["context"].split("\n\n")
    # In the order of the text, without the space at its beginning.
    assert sorted(row.values["evidence"]) == ["T7a is one.", "T7b is two."]
    places = [row.values["context"].index(sentence) for sentence in row.values["evidence"]]
    assert places == sorted(places)
    assert (row.values["input"], row.values["answers"]) == ("What is number 7?", ["answer 7"])
    assert row.values["question_type"] == "bridge"


def test_the_splits_share_no_question_and_no_paragraph(file):
    train, heldout = rows(file), rows(file, split="heldout")
    assert (len(train), len(heldout)) == (30, 10)
    assert not ids(train) & ids(heldout)
    assert not titles(*train) & titles(*heldout)


def test_distractors_of_any_question_stay_in_their_split(file):
    train, heldout = rows(file, similar=False), rows(file, split="heldout", similar=False)
    assert not titles(*train) & titles(*heldout)
    strange = [title for row in train for title in titles(row) if title[1:-1] != row.values["id"][2:]]
    assert len(strange) > len(train)


def test_shared_paragraphs_and_wordings_keep_a_question_out_of_training(tmp_path):
    questions = [question(number) for number in range(8)]
    held = rows(write(tmp_path / "all.json", questions), split="heldout")
    assert len(held) == 2
    number = int(held[0].values["id"][2:])
    others = [n for n in range(8) if f"id{n}" not in ids(held)]
    support, wording, distractor = others[:3]
    # One needs a supporting paragraph of the held-out question, one has its wording, one has its distractor.
    questions[support]["context"][0] = questions[number]["context"][0]
    questions[support]["supporting_facts"][1] = [f"T{number}a", 0]
    questions[wording]["question"] = questions[number]["question"]
    questions[distractor]["context"][3] = questions[number]["context"][2]
    path = write(tmp_path / "shared.json", questions)
    train, heldout = rows(path), rows(path, split="heldout")
    assert ids(train) == {f"id{n}" for n in others[2:]}
    assert ids(heldout) == ids(held) | {f"id{wording}"}
    assert not titles(*train) & titles(*heldout)


def test_a_paragraph_that_supports_a_training_question_is_no_held_out_distractor(tmp_path):
    questions = [question(number) for number in range(8)]
    path = write(tmp_path / "a.json", questions)
    (number, *_) = [int(id[2:]) for id in ids(rows(path, split="heldout"))]
    (other, *_) = [int(id[2:]) for id in ids(rows(path))]
    for place in (2, 3, 4):
        questions[number]["context"][place] = questions[other]["context"][0]
    path = write(tmp_path / "a.json", questions)
    assert f"T{other}a" in titles(*rows(path))
    assert f"T{other}a" not in titles(*rows(path, split="heldout"))


def test_another_files_questions_and_paragraphs_are_left_out(file, tmp_path):
    dev = [question(number) for number in (50, 51)]
    dev[0]["question"] = "What is number 3?"
    dev[1]["context"][4] = question(5)["context"][0]
    dev[1]["context"][5] = question(6)["context"][4]
    train = rows(file, split="all", without=str(write(tmp_path / "dev.json", dev)))
    assert ids(train) == {f"id{n}" for n in range(40)} - {"id3", "id5"}
    assert "T6e" not in titles(*train)


def test_types_and_yes_no_choose_questions(tmp_path):
    questions = [question(number) for number in range(8)]
    questions[1]["answer"], questions[3]["answer"] = "yes", "No"
    path = write(tmp_path / "a.json", questions)
    assert ids(rows(path, split="all")) == {f"id{n}" for n in (0, 2, 4, 5, 6, 7)}
    assert len(rows(path, split="all", yes_no=True)) == 8
    assert ids(rows(path, split="all", types=["comparison"])) == {"id0", "id6"}
    assert ids(rows(path, split="all", types=["bridge"])) == {"id2", "id4", "id5", "id7"}
    with pytest.raises(DataError, match=r"of 8 questions none is left for the split 'heldout'\. Check"):
        rows(path, split="heldout", types=["comparison"], heldout=0.1)


def test_questions_without_their_paragraphs_and_repeated_ones_are_left_out(tmp_path):
    questions = [question(0), question(1), question(0)]
    questions[1]["supporting_facts"] = [["T1a", 0], ["elsewhere", 0]]
    assert [row.values["id"] for row in rows(write(tmp_path / "a.json", questions), split="all")] == ["id0"]


def test_a_sentence_that_the_paragraph_lacks_is_no_evidence(tmp_path):
    odd = question(0, supporting_facts=[["T0a", 7], ["T0b", 0], ["T0a", "1"]])
    (row,) = rows(write(tmp_path / "a.json", [odd]), split="all")
    assert row.values["evidence"] == ["T0b is one."]


def test_long_paragraphs_are_left_out(tmp_path):
    questions = [question(number) for number in range(4)]
    questions[0]["context"][0][1][0] = "word " * 60
    questions[1]["context"][4][1][0] = "word " * 60
    found = rows(write(tmp_path / "a.json", questions), split="all", paragraph_words=20)
    assert ids(found) == {"id1", "id2", "id3"}
    assert not any("word word" in row.values["context"] for row in found)


def test_order_and_distractors_depend_on_the_seed_alone(file):
    first, again, other = ([row.values for row in rows(file, seed=seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert {row["id"] for row in first} == {row["id"] for row in other}
    assert rows(file, seed=1, limit=3) == rows(file, seed=1)[:3]


def test_a_bad_row_names_its_place_and_can_be_skipped(tmp_path):
    questions = [question(0), question(1, supporting_facts=3), question(2, context=[["T", [4]]])]
    path = write(tmp_path / "a.json", questions)
    found = {row.source: row.problem for row in rows(path, split="all")}
    assert found[f"{path} row 2"] == "field 'supporting_facts' should hold [title, sent_id] pairs, got the number 3"
    assert found[f"{path} row 3"] == "field 'context[0][1]' should hold sentences, got a list of 1"
    env = ENVS.get("longcontext")(ENVS.options("longcontext")(), ())
    dataset = DATASETS.get("hotpotqa")
    options = HotpotQaOptions(path=str(path), split="all", skip_bad_rows=True)
    assert [task.id for task in env.tasks(dataset(options, tmp_path)).tasks] == ["id0"]


def test_lines_that_are_not_json_and_missing_files_say_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(question(0)) + "\n{oops\n")
    (bad,) = [row for row in rows(path, split="all") if row.problem]
    assert (bad.source, bad.problem[:8]) == (f"{path} line 2", "not JSON")
    with pytest.raises(DataError, match=r"no such file[^\0]*hotpotqa.github.io"):
        rows(tmp_path / "none.json")
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataError, match=r"has no questions. HotpotQA is"):
        rows(tmp_path / "empty.json")


@pytest.mark.skipif(not REAL, reason="MEMFACTORY_DATA names no folder with the real files")
def test_the_real_questions_are_split_without_loss():
    path = Path(REAL) / "hotpotqa" / "questions.jsonl"
    train, heldout = rows(path), rows(path, split="heldout")
    assert not [row.problem for row in train + heldout if row.problem]
    # 925 questions, 57 of them answered by yes or no; a quarter of 868 is held out.
    assert len(heldout) == 217 and 868 - 217 - 20 <= len(train) <= 868 - 217
    assert not titles(*train) & titles(*heldout)
    for row in train + heldout:
        assert row.values["evidence"] and all(sentence in row.values["context"] for sentence in row.values["evidence"])

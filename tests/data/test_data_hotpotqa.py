"""Sets built from HotpotQA: nothing leaks, nothing depends on place or machine, every row is MemAgent's."""

import json
import os
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from memfactory.data.benchmarks.hotpotqa import HotpotQaSettings, Sources, build
from memfactory.data.rows import read_rows
from memfactory.errors import ConfigError, DataError
from memfactory.registry import DATASETS, ENVS

REAL = os.environ.get("MEMFACTORY_DATA")


def question(number, **changes):
    """A question with two gold paragraphs (titles a and b) and eight that only look like them."""
    titles = [f"T{number}{letter}" for letter in "abcdefghij"]
    return {
        "_id": f"id{number}",
        "question": f"What is number {number}?",
        "answer": f"answer {number}",
        "supporting_facts": [[titles[0], 0], [titles[1], 2]],
        "context": [[title, [f"{title} is one.", f" {title} is two."]] for title in titles],
        **changes,
    }


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def questions(tmp_path):
    return write(tmp_path / "questions.jsonl", [question(number) for number in range(30)])


@pytest.fixture
def documents(tmp_path):
    return write(tmp_path / "documents.jsonl", [{"title": f"P{n}", "text": f"P{n} is here."} for n in range(60)])


def read(path):
    return json.loads(path.read_text())


def titles(row):
    return re.findall(r"^Document \d+:\n(.*)$", row["context"], re.MULTILINE)


def make(questions, output, **options):
    sources = Sources(questions, options.pop("evaluation", None), options.pop("documents", None))
    watch = {name: options.pop(name) for name in ("count_tokens", "on_progress") if name in options}
    settings = HotpotQaSettings(**{"train_docs": (12, 20), "eval_docs": (15, 25), "eval_questions": 6, **options})
    return build(sources, output, settings, **watch)


def test_rows_have_memagents_schema(questions, documents, tmp_path):
    make(questions, tmp_path / "out", documents=documents)
    row = read(tmp_path / "out" / "eval_15.json")[0]
    number = row["index"]
    assert list(row) == ["context", "input", "answers", "num_docs", "index"]
    assert (row["input"], row["answers"]) == (f"What is number {number}?", [f"answer {number}"])
    pieces = row["context"].split("\n\n")
    assert [piece.partition("\n")[0] for piece in pieces] == [f"Document {n}:" for n in range(1, 16)]
    assert f"T{number}a\nT{number}a is one. T{number}a is two." in row["context"]


def test_every_length_has_the_same_questions_and_a_longer_text_holds_the_shorter(questions, documents, tmp_path):
    make(questions, tmp_path, documents=documents)
    short, long = read(tmp_path / "eval_15.json"), read(tmp_path / "eval_25.json")
    assert [row["input"] for row in short] == [row["input"] for row in long]
    assert [row["index"] for row in short] == sorted(row["index"] for row in short)
    for few, many in zip(short, long):
        assert len(titles(few)) == few["num_docs"] == 15 and len(titles(many)) == many["num_docs"] == 25
        assert len(set(titles(many))) == 25
        assert set(titles(few)) < set(titles(many))
        own = [f"T{few['index']}{letter}" for letter in "abcdefghij"]
        assert set(own) <= set(titles(few))


def test_a_length_built_alone_is_the_same_file(questions, documents, tmp_path):
    make(questions, tmp_path / "a", documents=documents)
    make(questions, tmp_path / "b", documents=documents, eval_docs=(15,))
    assert (tmp_path / "a" / "eval_15.json").read_bytes() == (tmp_path / "b" / "eval_15.json").read_bytes()


def test_evaluation_questions_and_their_paragraphs_never_train(questions, documents, tmp_path):
    report = make(questions, tmp_path, documents=documents, train_rows=100)
    held = [row["index"] for row in read(tmp_path / "eval_15.json")]
    train = read(tmp_path / "hotpotqa_train.json")
    assert len(held) == 6 and len(train) == 100
    assert not {row["index"] for row in train} & set(held)
    own = {f"T{number}{letter}" for number in held for letter in "abcdefghij"}
    assert not own & {title for row in train for title in titles(row)}
    assert "60 of 360 documents belong to evaluation questions and never occur in training" in report.notes


def test_shared_paragraphs_are_kept_out_of_training(documents, tmp_path):
    # Question 1 shares a distractor with question 0, question 2 a gold paragraph, question 3 the wording.
    rows = [question(number) for number in range(4)]
    rows[1]["context"][5] = rows[0]["context"][3]
    rows[2]["context"][0] = rows[0]["context"][7]
    rows[2]["supporting_facts"] = [["T0h", 0], ["T2b", 0]]
    rows[3]["question"] = rows[0]["question"]
    train_file = write(tmp_path / "train.jsonl", rows[1:])
    eval_file = write(tmp_path / "dev.jsonl", rows[:1])
    report = make(train_file, tmp_path, documents=documents, evaluation=eval_file, eval_questions=1)
    train = read(tmp_path / "hotpotqa_train.json")
    assert [row["input"] for row in train] == ["What is number 1?"]
    assert "T0d" not in titles(train[0]) and set(titles(train[0])) >= {"T1a", "T1b", "T1j"}
    assert len(titles(train[0])) == train[0]["num_docs"]
    assert "1 training questions left out: they share a gold paragraph with an evaluation question" in report.notes


def test_another_version_of_an_evaluation_article_never_trains(documents, tmp_path):
    rows = [question(0), question(1)]
    rows[1]["context"][5] = ["T0d", ["T0d as it was another day."]]
    train_file, eval_file = write(tmp_path / "train.jsonl", rows[1:]), write(tmp_path / "dev.jsonl", rows[:1])
    make(train_file, tmp_path, documents=documents, evaluation=eval_file, eval_questions=1, train_rows=20)
    trained = {title for row in read(tmp_path / "hotpotqa_train.json") for title in titles(row)}
    assert "T1a" in trained and "T0d" not in trained


def test_a_copy_of_an_evaluation_paragraph_under_another_title_never_trains(tmp_path):
    pool = [
        {"title": "Copy", "text": "T0a is one. T0a is two."},
        *({"title": f"P{n}", "text": f"{n}"} for n in range(20)),
    ]
    pool_file = write(tmp_path / "documents.jsonl", pool)
    make(
        write(tmp_path / "train.jsonl", [question(1)]),
        tmp_path,
        documents=pool_file,
        evaluation=write(tmp_path / "dev.jsonl", [question(0)]),
        eval_questions=1,
        train_docs=(30, 30),
    )
    (row,) = read(tmp_path / "hotpotqa_train.json")
    assert sorted(titles(row)) == sorted([f"P{n}" for n in range(20)] + [f"T1{letter}" for letter in "abcdefghij"])


def test_gold_paragraphs_lie_everywhere(questions, documents, tmp_path):
    make(questions, tmp_path, documents=documents, train_rows=600, train_docs=(20, 20))
    places = Counter()
    for row in read(tmp_path / "hotpotqa_train.json"):
        places.update(place for place, title in enumerate(titles(row)) if title in (f"T{row['index']}a",))
    # 600 rows over 20 places: 30 each, standard deviation about 5.3; none strays 4 deviations.
    assert len(places) == 20 and all(9 <= count <= 51 for count in places.values())
    rows = read(tmp_path / "eval_25.json")
    assert len({titles(row).index(f"T{row['index']}a") for row in rows}) > 1


def test_more_rows_than_questions_come_among_other_documents(questions, documents, tmp_path):
    make(questions, tmp_path, documents=documents, train_rows=48)  # 24 questions are left to train on: each twice
    rows = read(tmp_path / "hotpotqa_train.json")
    by_question = Counter(row["index"] for row in rows)
    assert set(by_question.values()) == {2}
    assert len({row["context"] for row in rows}) == 48
    assert {row["num_docs"] for row in rows} <= set(range(12, 21)) and len({row["num_docs"] for row in rows}) > 4


def test_equal_arguments_give_equal_bytes_and_seeds_differ(questions, documents, tmp_path):
    first, second, other = (
        make(questions, tmp_path / name, documents=documents, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [file.sha256 for file in first.files] == [file.sha256 for file in second.files]
    assert not {file.sha256 for file in first.files} & {file.sha256 for file in other.files}


def test_the_order_of_the_pool_does_not_matter(questions, documents, tmp_path):
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(reversed(documents.read_text().splitlines())))
    first = make(questions, tmp_path / "a", documents=documents)
    second = make(questions, tmp_path / "b", documents=shuffled)
    assert [file.sha256 for file in first.files] == [file.sha256 for file in second.files]


def test_yes_no_repeated_and_incomplete_questions_are_left_out(documents, tmp_path):
    rows = [question(number) for number in range(10)]
    rows += [question(10, answer="Yes"), question(11, answer="no"), question(3)]
    rows += [question(12, supporting_facts=[["elsewhere", 0]])]
    path = write(tmp_path / "questions.jsonl", rows)
    report = make(path, tmp_path / "a", documents=documents, eval_questions=2)
    assert report.files[0].rows == 8
    assert report.notes[:3] == (
        "1 questions left out: repeated",
        "1 questions left out: without all their gold paragraphs",
        "2 questions left out: answered by yes or no",
    )
    assert make(path, tmp_path / "b", documents=documents, eval_questions=2, keep_yes_no=True).files[0].rows == 10


@pytest.mark.parametrize("train_format", ["json", "jsonl", "parquet"])
def test_every_training_format_gives_the_same_tasks(questions, documents, tmp_path, train_format):
    make(questions, tmp_path, documents=documents, train_rows=70, train_format=train_format)
    path = tmp_path / f"hotpotqa_train.{train_format}"
    env = ENVS.get("longcontext")(ENVS.options("longcontext")(), ())
    tasks = env.tasks(DATASETS.get("file")(DATASETS.options("file")(path=str(path)), tmp_path)).tasks
    make(questions, tmp_path / "again", documents=documents, train_rows=70)
    plain = read(tmp_path / "again" / "hotpotqa_train.json")
    assert [(t.question, list(t.answers), t.context, t.meta["num_docs"]) for t in tasks] == [
        (row["input"], row["answers"], row["context"], row["num_docs"]) for row in plain
    ]
    if train_format == "parquet":
        row = read_rows(path, "rows")[0].values
        assert list(row) == ["data_source", "prompt", "context", "ability", "reward_model", "extra_info"]
        assert row["reward_model"] == {"style": "rule", "ground_truth": plain[0]["answers"]}


def test_the_official_json_and_the_hubs_parquet_are_read(questions, documents, tmp_path):
    rows = [question(number) for number in range(30)]
    official = tmp_path / "hotpot_dev_distractor_v1.json"
    official.write_text(json.dumps(rows))
    hub = [
        {
            **{"id" if name == "_id" else name: value for name, value in row.items()},
            "supporting_facts": {"title": [t for t, _ in row["supporting_facts"]], "sent_id": [0, 2]},
            "context": {"title": [t for t, _ in row["context"]], "sentences": [said for _, said in row["context"]]},
        }
        for row in rows
    ]
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(hub), tmp_path / "hub.parquet")
    paths = (questions, official, tmp_path / "hub.parquet")
    reports = [make(path, tmp_path / path.stem, documents=documents) for path in paths]
    assert len({tuple(file.sha256 for file in report.files) for report in reports}) == 1


def test_progress_and_tokens_are_told(questions, documents, tmp_path):
    told = []
    report = make(
        questions,
        tmp_path,
        documents=documents,
        train_rows=3,
        count_tokens=lambda text: len(text.split()),
        on_progress=lambda *words: told.append(words),
    )
    assert told[:2] == [("eval_15.json", 1, 6), ("eval_15.json", 2, 6)]
    assert told[-1] == ("hotpotqa_train.json", 3, 3) and len(told) == 6 + 6 + 3
    rows = read(tmp_path / "eval_15.json")
    assert report.files[1].mean_tokens == statistics.fmean(len(row["context"].split()) for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_docs": (20, 12)}, "train_docs: expected 10 <= fewest <= most, got 20 and 12"),
        ({"train_docs": (5, 12)}, "train_docs: expected 10 <= fewest <= most, got 5 and 12"),
        ({"eval_docs": ()}, "eval_docs: expected numbers of at least 10, got []"),
        ({"eval_docs": (50, 9)}, "eval_docs: expected numbers of at least 10, got [50, 9]"),
        ({"eval_questions": 0}, "eval_questions: expected at least 1, got 0"),
        ({"train_rows": 0}, "train_rows: expected at least 1, got 0"),
    ],
)
def test_impossible_numbers_are_refused(questions, tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        make(questions, tmp_path, **options)
    assert caught.value.problems == (message,)


def test_too_few_questions_or_documents_are_told(questions, documents, tmp_path):
    with pytest.raises(DataError, match="30 evaluation questions are requested, but only 30 questions can be used for"):
        make(questions, tmp_path, eval_questions=30)
    with pytest.raises(DataError, match="a text of 400 documents is requested, but there are only 360; add"):
        make(questions, tmp_path / "out", documents=documents, eval_docs=(400,))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "line 2: field 'question' should be a text, got null"),
        ({"answer": ["x"]}, "line 2: field 'answer' should be a text, got a list of 1"),
        ({"context": "x"}, "line 2: field 'context' should hold [title, sentences] pairs, got the text 'x'"),
        ({"context": [["T", "x", 1]]}, "line 2: field 'context' should hold [title, sentences] pairs, got a list of 3"),
        ({"context": [["T", [1]]]}, "line 2: field 'context[0][1]' should hold sentences, got a list of 1"),
        ({"supporting_facts": []}, "line 2: field 'supporting_facts' should hold [title, sent_id] pairs, got an empty"),
    ],
)
def test_a_question_that_does_not_fit_is_told_with_its_place(tmp_path, changes, message):
    path = write(tmp_path / "questions.jsonl", [question(0), question(1, **changes)])
    with pytest.raises(DataError) as caught:
        make(path, tmp_path)
    assert str(caught.value).startswith(f"{path} {message}")


def test_missing_fields_and_files_are_told(tmp_path):
    path = write(tmp_path / "questions.jsonl", [{"_id": "1", "question": "x"}])
    with pytest.raises(DataError, match="line 1 has no field 'answer'; it has _id, question"):
        make(path, tmp_path)
    with pytest.raises(DataError, match=r"none.json: there is no such file"):
        make(tmp_path / "none.json", tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        make(write(tmp_path / "q.jsonl", [question(n) for n in range(30)]), path)


@pytest.mark.skipif(not REAL, reason="MEMFACTORY_DATA names no folder with the real HotpotQA questions")
def test_the_real_questions_give_memagents_sets_without_a_leak(tmp_path):
    folder = Path(REAL) / "hotpotqa"
    sources = Sources(folder / "questions.jsonl", documents=folder / "documents.jsonl")
    build(sources, tmp_path, HotpotQaSettings(train_rows=200))
    short, long, train = (read(tmp_path / f"{name}.json") for name in ("eval_50", "eval_100", "hotpotqa_train"))
    assert len(short) == len(long) == 128 and [row["input"] for row in short] == [row["input"] for row in long]
    words = statistics.fmean(len(row["context"].split()) for row in short)
    assert 4500 < words < 5100  # about 1.45 tokens of Qwen a word: MemAgent's 7K
    source = {row.values["question"]: row.values for row in read_rows(folder / "questions.jsonl", "questions")}
    held = [(title, "".join(said)) for row in short for title, said in source[row["input"]]["context"]]
    trained = {text for row in train for piece in row["context"].split("\n\n") for text in piece.split("\n")}
    assert len(held) > 1270 and not [title for title, text in held if title in trained or text in trained]
    for row in (*short, *train):
        gold = {title for title, _ in source[row["input"]]["supporting_facts"]}
        assert gold <= set(titles(row)) and len(set(titles(row))) == row["num_docs"]

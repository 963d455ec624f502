"""SQuAD over a few paragraphs: splits by article, evidence, files that do not fit; made-up files of the same shape."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from memfactory.cli.app import app
from memfactory.data.benchmarks.squad import SquadOptions, sentence_around
from memfactory.errors import DataError
from memfactory.registry import DATASETS, ENVS

REAL = os.environ.get("MEMFACTORY_DATA")


def asking(id, paragraph, text, **changes):
    """A question whose answer is `text`, at its place in `paragraph`."""
    answers = [{"text": text, "answer_start": paragraph.index(text)}]
    return {"id": id, "question": f"What about {id}?", "answers": answers, **changes}


def article(number, paragraphs=2):
    """An article of paragraphs of two sentences, each with one question, whose answer is in the second sentence."""
    texts = [f"Article {number} opens part {p}. Its code is N{number}P{p}." for p in range(paragraphs)]
    return {
        "title": f"Article_{number}",
        "paragraphs": [
            {"context": text, "qas": [asking(f"q{number}-{p}", text, f"N{number}P{p}")]} for p, text in enumerate(texts)
        ],
    }


def write(path, articles, version="1.1"):
    path.write_text(json.dumps({"version": version, "data": articles}))
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "squad.json", [article(number) for number in range(8)])


def rows(path, **options):
    options = SquadOptions(path=str(path), **options)
    return list(DATASETS.get("squad")(options, Path()).rows())


def titles(rows):
    return {paragraph.partition("\n")[0] for row in rows for paragraph in row.values["context"].split("\n\n")}


def one(path, paragraph, question, **options):
    other = article(1)
    write(path, [{"title": "Own", "paragraphs": [{"context": paragraph, "qas": [question]}]}, other])
    options = {"split": "all", "distractors": 1, "unanswerable": None, **options}
    return next(row for row in rows(path, **options) if "Own" in row.source)


def test_a_row_has_its_paragraph_among_those_of_other_articles(file):
    row = next(row for row in rows(file, split="all") if row.values["id"] == "q3-1").values
    paragraphs = row["context"].split("\n\n")
    assert len(paragraphs) == row["num_docs"] == 3
    own = "Article 3\nArticle 3 opens part 1. Its code is N3P1."
    assert own in paragraphs and sum("Article 3\n" in paragraph for paragraph in paragraphs) == 1
    assert row["evidence"] == ["Its code is N3P1."]
    assert (row["input"], row["answers"], row["title"]) == ("What about q3-1?", ["N3P1"], "Article 3")


def test_the_splits_share_no_article_as_gold_or_as_distractor(file):
    train, heldout = rows(file), rows(file, split="heldout", distractors=1)
    # A quarter of eight articles of two questions.
    assert (len(train), len(heldout)) == (12, 4)
    assert (len(titles(train)), len(titles(heldout))) == (6, 2)
    assert not titles(train) & titles(heldout)


def test_the_hash_alone_holds_articles_out(file, tmp_path):
    other = write(tmp_path / "other.json", [article(number) for number in reversed(range(8))])
    assert titles(rows(file, seed=0)) == titles(rows(other, seed=5))


def test_a_list_names_the_articles_that_are_held_out(file):
    chosen = ["Article_2", "Article_5"]
    assert titles(rows(file, split="heldout", heldout=chosen, distractors=1)) == {"Article 2", "Article 5"}
    assert not titles(rows(file, heldout=chosen)) & {"Article 2", "Article 5"}


def test_the_articles_of_another_file_are_left_out(file, tmp_path):
    other = write(tmp_path / "dev.json", [article(number) for number in (0, 4)])
    train = rows(file, split="all", without=str(other))
    assert len(train) == 12 and not titles(train) & titles(rows(other, split="all", distractors=1))


def test_order_places_and_distractors_depend_on_the_seed_alone(file):
    first, again, other = ([row.values for row in rows(file, seed=seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert {row["id"] for row in first} == {row["id"] for row in other}
    assert [row["id"] for row in first] != [row["id"] for row in other]
    assert rows(file, seed=1, limit=3) == rows(file, seed=1)[:3]


def test_the_place_of_the_own_paragraph_differs_from_row_to_row(file):
    places = set()
    for row in rows(file):
        paragraphs = row.values["context"].split("\n\n")
        places |= {place for place, paragraph in enumerate(paragraphs) if row.values["evidence"][0] in paragraph}
    assert places == {0, 1, 2}


@pytest.mark.parametrize(
    ("headings", "opening"), [("none", "Article "), ("title", "Article 0\nA"), ("number", "Document 1:\nArticle ")]
)
def test_headings_of_paragraphs(file, headings, opening):
    row = next(row for row in rows(file, split="all", headings=headings, distractors=0) if row.values["id"] == "q0-0")
    assert row.values["context"].startswith(opening)
    assert row.values["context"].endswith("Article 0 opens part 0. Its code is N0P0.")


def test_impossible_questions_are_left_out_unless_they_have_an_answer(tmp_path):
    text = "The sky is blue."
    impossible = {"id": "i", "question": "Why?", "answers": [], "is_impossible": True}
    with pytest.raises(StopIteration):
        one(tmp_path / "a.json", text, impossible)
    row = one(tmp_path / "a.json", text, impossible, unanswerable="unknown").values
    assert (row["answers"], row["evidence"]) == (["unknown"], [])


def test_distinct_answers_count_and_the_first_gives_the_evidence(tmp_path):
    text = "Dr. Roe saw Mt. Fuji in 1990. He left for Rome (in haste). Was it 3 p.m. then?"
    answers = [{"text": word, "answer_start": text.index(word)} for word in ("Rome", "for Rome", "Rome")]
    row = one(tmp_path / "a.json", text, asking("a", text, "Rome", answers=answers)).values
    assert row["answers"] == ["Rome", "for Rome"]
    assert row["evidence"] == ["He left for Rome (in haste)."]


def test_an_answer_over_two_sentences_has_both_as_evidence(tmp_path):
    text = "One. It was Ada. Boris too. End."
    row = one(tmp_path / "a.json", text, asking("a", text, "Ada. Boris")).values
    assert row["evidence"] == ["It was Ada. Boris too."]


def test_a_line_break_in_a_paragraph_is_a_space(tmp_path):
    text = "Ada came\n\nfrom Rome. She left."
    row = one(tmp_path / "a.json", text, asking("a", text, "from Rome"), distractors=0).values
    assert row["context"] == "Own\nAda came  from Rome. She left."
    assert row["evidence"] == ["Ada came  from Rome."]


def test_long_paragraphs_are_left_out(tmp_path):
    long = article(0)
    long["paragraphs"][0]["context"] += " word" * 50
    path = write(tmp_path / "a.json", [long, article(1), article(2)])
    found = rows(path, split="all", paragraph_words=20)
    assert len(found) == 5 and not any(" word word" in row.values["context"] for row in found)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answers": []}, "field 'answers' should hold at least one answer, got an empty list"),
        ({"answers": [{"text": "blue", "answer_start": 3}]}, "field 'answers[0]' should be a text at its answer"),
        (
            {"answers": [{"text": "blue", "answer_start": -4}]},
            "field 'answers[0]' should be a text at its answer",
        ),
        ({"answers": [{"text": "blue"}]}, "field 'answers[0]' has no field 'answer_start'"),
        ({"answers": [{"text": "blue", "answer_start": "11"}]}, "field 'answers[0].answer_start' should be a whole"),
        ({"question": " "}, "field 'question' should be a text, got an empty text"),
        ({"answers": "blue"}, "field 'answers' should be a list, got the text 'blue'"),
    ],
)
def test_a_question_that_does_not_fit_names_its_place(tmp_path, changes, problem):
    text = "The sky is blue."
    row = one(tmp_path / "a.json", text, asking("a", text, "blue", **changes))
    assert row.problem.startswith(problem)
    assert row.source == f"{tmp_path / 'a.json'} article 'Own' paragraph 1 question 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected SQuAD's form, an object with a list `data`, got an empty list"),
        ('{"data": 3}', "field 'data' should be a list, got the number 3"),
        ('{"data": []}', "has no articles"),
        ('{"data": [{"title": "A"}]}', "field 'data[0]' has no field 'paragraphs'; it has title"),
        ('{"data": [{"title": "A", "paragraphs": [{"qas": []}]}]}', "'data[0].paragraphs[0]' has no field 'context'"),
        ('{"data": [\n{"title" 3}]}', "a.json is not JSON: Expecting ':' delimiter (line 2, column 10)"),
        ('{"data": [{"title": "A", "paragraphs": []}]}', "of 1 articles, 0 are held out. Check `heldout`"),
    ],
)
def test_a_file_that_does_not_fit_says_so(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as caught:
        rows(tmp_path / "a.json")
    assert "a.json" in str(caught.value) and message in str(caught.value)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no such file[^\0]*rajpurkar.github.io"):
        rows(tmp_path / "none.json")
    with pytest.raises(DataError, match="`heldout` names 'Article_x', but there is no such article; did you mean"):
        rows(write(tmp_path / "a.json", [article(1)]), heldout=["Article_x"])


def test_too_few_paragraphs_of_other_articles_are_a_problem(tmp_path):
    (row, *_) = rows(write(tmp_path / "a.json", [article(1), article(2, 1)]), split="all", distractors=3)
    assert "3 distractors are requested, but only " in row.problem and "lower `distractors`" in row.problem


def test_the_environment_reads_the_rows(file, tmp_path):
    env = ENVS.get("longcontext")(ENVS.options("longcontext")(), ())
    tasks = env.tasks(DATASETS.get("squad")(SquadOptions(path=str(file)), tmp_path)).tasks
    assert [(task.id, task.question, list(task.answers), task.context) for task in tasks] == [
        tuple(row.values[name] for name in ("id", "input", "answers", "context")) for row in rows(file)
    ]


def test_a_bad_question_stops_a_run_with_its_place(tmp_path):
    bad = article(0)
    bad["paragraphs"][1]["qas"][0]["answers"] = []
    path = write(tmp_path / "squad.json", [bad, *map(article, range(1, 6))])
    env = ENVS.get("longcontext")(ENVS.options("longcontext")(), ())
    dataset = DATASETS.get("squad")
    with pytest.raises(DataError, match=r"squad.json article 'Article_0' paragraph 2 question 1: field 'answers' s"):
        env.tasks(dataset(SquadOptions(path=str(path), split="all"), tmp_path))
    options = SquadOptions(path=str(path), split="all", skip_bad_rows=True)
    assert len(env.tasks(dataset(options, tmp_path)).tasks) == 11


def test_the_command_writes_both_splits(file, tmp_path):
    out = tmp_path / "out"
    options = ["--output", str(out), "--distractors", "1", "--seed", "3"]
    result = CliRunner().invoke(app, ["data", "squad", str(file), *options])
    assert result.exit_code == 0, result.output
    for split in ("train", "heldout"):
        written = [json.loads(line) for line in (out / f"squad_{split}.jsonl").read_text().splitlines()]
        assert written == [dict(row.values) for row in rows(file, split=split, distractors=1, seed=3)]
    assert "squad_train.jsonl: 12 rows" in result.output


def test_the_evidence_is_not_cut_at_an_abbreviation():
    text = 'He met J. R. Roe, e.g. in St. Ives. "Why?" she asked. Version 2.5 came in late. It was so!'
    whole = {"Roe": "He met J. R. Roe, e.g. in St. Ives.", "2.5": "Version 2.5 came in late.", "so": "It was so!"}
    for word, sentence in whole.items():
        assert sentence_around(text, text.index(word), text.index(word) + len(word)) == sentence


@given(st.text("aB. ?\"'1\n", min_size=1), st.data())
def test_a_sentence_holds_the_place_that_it_is_around(text, data):
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    sentence = sentence_around(text, begin, end)
    assert text[begin:end].strip() in sentence and sentence in text


@pytest.mark.skipif(not REAL, reason="MEMFACTORY_DATA names no folder with the real files")
def test_the_real_file_is_read_whole():
    path = Path(REAL) / "squad" / "dev-v2.0-half.json"
    train, heldout = rows(path), rows(path, split="heldout")
    assert not [row.problem for row in train + heldout if row.problem]
    # 2,910 of the 6,078 questions can be answered.
    assert len(train) + len(heldout) == 2910
    assert not titles(train) & titles(heldout)
    for row in train + heldout:
        (evidence,) = row.values["evidence"]
        assert evidence in row.values["context"] and row.values["answers"][0] in evidence
    assert len(rows(path, split="all", unanswerable="unknown")) == 6078

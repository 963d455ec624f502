"""Facts in paragraphs of real prose: articles of text files, rows with evidence, splits without a common article."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from memfactory.data.prose import of_split, read_articles
from memfactory.data.synthetic.fact_world import NAMES
from memfactory.data.synthetic.facts_in_text import FactsInTextOptions, articles_of, draw_passage
from memfactory.data.synthetic.person_facts import ATTRIBUTES, PersonFact
from memfactory.envs.longcontext import LongcontextEnv, LongcontextOptions
from memfactory.errors import DataError
from memfactory.registry import DATASETS

DOCS = Path(__file__).parents[2] / "docs"
OPTIONS = st.builds(
    FactsInTextOptions,
    text=st.just(str(DOCS)),
    paragraphs=st.integers(2, 4),
    facts_per_paragraph=st.integers(1, 3),
    distractors=st.integers(0, 2),
    corrections=st.sampled_from([0.0, 0.5, 1.0]),
    paragraph_words=st.integers(70, 120),
    split=st.sampled_from(["train", "heldout"]),
    seed=st.integers(0, 3),
)


def rows_of(**options):
    dataset = DATASETS.get("facts_in_text")
    return dataset(dataset.Options(text=str(DOCS), **options), Path()).rows()


def articles(options):
    return articles_of(DOCS, options.split)


@given(options=OPTIONS, index=st.integers(0, 500))
@settings(max_examples=80, deadline=None)
def test_the_evidence_stands_in_the_text_and_gives_the_answer(options, index):
    passage = draw_passage(options, articles(options), index)
    text = "\n\n".join(passage.paragraphs)
    places = [text.index(sentence) for sentence in passage.evidence]
    assert places == sorted(places) and all(text.count(sentence) == 1 for sentence in passage.evidence)
    assert passage.evidence[-1].endswith(f" {passage.answer}.")
    assert passage.outdated == passage.evidence[:-1] and passage.answer not in "".join(passage.outdated)
    assert options.corrections < 1 or len(passage.evidence) == 2
    assert options.corrections > 0 or len(passage.evidence) == 1


@given(options=OPTIONS, index=st.integers(0, 500))
@settings(max_examples=80, deadline=None)
def test_a_paragraph_has_prose_and_its_facts(options, index):
    passage = draw_passage(options, articles(options), index)
    prose = {sentence for article in articles(options) for sentence in article.sentences}
    assert len(passage.paragraphs) == options.paragraphs
    for paragraph in passage.paragraphs:
        assert len(paragraph.split()) <= options.paragraph_words and "\n" not in paragraph
        assert paragraph.startswith(tuple(prose))
    text = " ".join(passage.paragraphs)
    stated = len(re.findall(rf"\b(?:{'|'.join(NAMES)})'s (?:{'|'.join(ATTRIBUTES)}) is", text))
    corrected = len(passage.evidence) == 2
    # The corrected fact and another one, if there is another before the last paragraph.
    other = (options.paragraphs - 1) * options.facts_per_paragraph > 1
    assert stated == options.paragraphs * options.facts_per_paragraph + options.distractors + corrected * (1 + other)


def test_the_splits_share_no_article_and_no_fact():
    sentences, evidence = {}, {}
    for split in ("train", "heldout"):
        rows = rows_of(split=split, rows=200, corrections=0.3)
        own = {s for article in of_split(read_articles(DOCS), split) for s in article.sentences}
        text = " ".join(str(row.values["context"]) for row in rows)
        sentences[split] = {sentence for sentence in own if sentence in text}
        evidence[split] = {fact.replace(" is now ", " is ") for row in rows for fact in row.values["evidence"]}
    assert min(map(len, sentences.values())) > 50 and min(map(len, evidence.values())) > 150
    assert not sentences["train"] & sentences["heldout"]
    assert not evidence["train"] & evidence["heldout"]


def test_a_row_depends_on_its_number_and_the_options_alone():
    few, many = rows_of(rows=3, seed=7), rows_of(rows=50, seed=7)
    assert [row.values for row in few] == [row.values for row in many[:3]]
    assert few[0].values != rows_of(rows=3, seed=8)[0].values
    assert sorted(few[0].values) == ["answers", "context", "evidence", "index", "input", "num_docs"]


def test_the_environment_reads_the_evidence_and_no_metric_needs_it():
    row = rows_of(rows=1, corrections=1.0)[0]
    task = LongcontextEnv(LongcontextOptions(), []).task(row)
    assert list(task.support) == row.values["evidence"] and list(task.outdated) == row.values["outdated"]
    assert task.evidence == () and task.answers == tuple(row.values["answers"])


def test_a_fact_is_a_sentence_a_correction_and_a_question():
    fact = PersonFact("Anna", "dentist", "Novak")
    assert fact.sentence == "Anna's dentist is Novak."
    assert fact.correction == "Anna's dentist is now Novak."
    assert fact.question == "Who is Anna's dentist?"


PAGE = """Before any heading stands a first remark of several words.

# Lighthouses

The *tall* [tower](https://example.org) was built in `1901` by Mr. Smith. It still stands today!

- A list is no prose at all.

| a | table |
|---|---|

```sh
Code is no prose either.
```

Too short here.

# Bridges

A bridge
crosses the river near the town. <!-- This remark is never read. -->
"""


def test_the_prose_of_a_markdown_page_is_its_sentences(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    found = {article.title: article.sentences for article in read_articles(tmp_path / "page.md")}
    assert found == {
        "page": ("Before any heading stands a first remark of several words.",),
        "Lighthouses": ("The tall tower was built in 1901 by Mr. Smith.", "It still stands today!"),
        "Bridges": ("A bridge crosses the river near the town.",),
    }


def test_the_articles_of_a_plain_text_are_its_paragraphs_and_of_a_folder_its_files(tmp_path):
    text = "The first paragraph has these words.\n\nThe second paragraph has other words.\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("A third text has words too.\n")
    (tmp_path / "c.csv").write_text("This file is no text at all.\n")
    assert len(read_articles(tmp_path / "a.txt")) == 2
    assert [article.title for article in read_articles(tmp_path)] == ["a", "b"]


def test_equal_articles_count_once_and_so_stay_in_one_split(tmp_path):
    (tmp_path / "a.md").write_text(
        "# A\n\nThe same words stand here twice.\n\n# B\n\nThe same words stand here twice.\n"
    )
    (article,) = read_articles(tmp_path / "a.md")
    with pytest.raises(DataError, match="one article, 'A', but train and heldout share none; expected at least two"):
        of_split((article,), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.md", None, "there is no such text file or folder"),
        ("empty.md", b"", "has no sentence of at least 4 words"),
        ("bytes.txt", b"Caf\xe9 words stand here now.", "is no text in UTF-8: byte 3"),
    ],
)
def test_a_text_that_cannot_be_used_says_why(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_articles(tmp_path / name)


def test_a_folder_without_texts_names_the_endings(tmp_path):
    with pytest.raises(DataError, match=r"without text files; expected files that end in \.md"):
        read_articles(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paragraphs": 40}, "paragraphs x facts_per_paragraph is 80, but there are only 64 people"),
        ({"paragraphs": 1, "corrections": 0.5}, "corrections need at least 2 paragraphs"),
        # 2 + 2 facts of 6 words and 20 words of prose.
        ({"paragraph_words": 43, "distractors": 2}, "paragraph_words is 43; 4 statements need at least 44"),
    ],
)
def test_options_that_do_not_fit_say_which(options, message):
    with pytest.raises(ValidationError, match=message):
        FactsInTextOptions.model_validate({"text": "docs", **options})


def test_a_text_beside_the_config_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "page.md").write_text(PAGE + "\n# Third\n\nA third article has words too.\n")
    dataset = DATASETS.get("facts_in_text")
    made = dataset(dataset.Options(text="page.md", paragraph_words=40, facts_per_paragraph=1), beside)
    assert len(made.articles) == 3
    assert len(made.rows()) == 1000


def test_prose_that_states_a_fact_itself_is_left_out(tmp_path):
    one = "Paula's ticket number is 845 in this text. The harbour was built by a king."
    two = "The harbour was sold by a queen. Bruno's bus line is now 310 there."
    (tmp_path / "text.md").write_text(f"# One\n\n{one}\n\n# Two\n\n{two}\n")
    found = [*articles_of(tmp_path / "text.md", "train"), *articles_of(tmp_path / "text.md", "heldout")]
    assert {article.sentences for article in found} == {
        ("The harbour was built by a king.",),
        ("The harbour was sold by a queen.",),
    }

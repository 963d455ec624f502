"""The dataset `squad`, and `memfactory data squad`: questions of SQuAD over a few paragraphs (arXiv 1806.03822).

The question's paragraph stands among paragraphs of other articles. The evidence is the sentence that holds the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from memfactory.data.base import Dataset, GeneratedRows, Row
from memfactory.data.benchmarks.hotpotqa_source import Document
from memfactory.data.benchmarks.paragraphs import ParagraphOptions, Values, one_line, surrounded, text_of
from memfactory.data.digest import digest_of
from memfactory.data.fields import AnyText, RowModel, Text, TextOrNumber, described, read
from memfactory.data.published import Published, find_published, form_of
from memfactory.data.rows import parse_json, read_rows, read_text
from memfactory.data.writing import OnProgress, Report, write_rows
from memfactory.errors import DataError, nearest
from memfactory.registry import DATASETS
from memfactory.text import unit_ends

WHERE = (
    "SQuAD is train-v1.1.json, dev-v1.1.json, train-v2.0.json and dev-v2.0.json of "
    "https://rajpurkar.github.io/SQuAD-explorer/ (CC BY-SA 4.0)"
)
FILE = Published("SQuAD", "an object with a list `data`", WHERE, "articles", frozenset({"data"}))
SPLITS: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")


class SquadOptions(ParagraphOptions):
    """Options of `squad`."""

    published: ClassVar[str] = WHERE
    heldout: Annotated[float, Field(ge=0, le=1)] | list[str] = 0.25
    """The held-out articles: a fraction of them, chosen by the hashes of the titles, or a list of titles."""
    unanswerable: str | None = Field(None, min_length=1)
    """The gold answer of the questions that SQuAD 2.0 marks as impossible; null leaves them out."""


class _Answer(RowModel):
    text: AnyText
    answer_start: int = Field(strict=True)


class _Question(RowModel):
    id: TextOrNumber
    question: Text
    answers: list[_Answer] = Field(default_factory=list)
    is_impossible: bool = False


class _Paragraph(RowModel):
    context: Text
    qas: list[object]


class _Article(RowModel):
    title: Text
    paragraphs: list[_Paragraph]


class _File(RowModel):
    data: list[_Article]


@dataclass(frozen=True)
class Entry:
    """A question as the file has it, with its paragraph; `source` is its place in the file."""

    values: object
    paragraph: Document
    source: str


@dataclass(frozen=True)
class Selected:
    """The questions and paragraphs of one split."""

    entries: tuple[Entry, ...]
    paragraphs: tuple[Document, ...]


@DATASETS.register("squad")
class SquadDataset(Dataset[SquadOptions]):
    """SQuAD: questions over a few paragraphs, one of which holds the answer; the others are of other articles."""

    @property
    def source(self) -> str:
        return self.options.path

    def rows(self) -> Sequence[Row]:
        """The rows in random order, made on access. A question that does not fit is a row with a problem."""
        options = self.options
        selected = select(options, self.base_dir)
        entries = selected.entries[: options.limit]
        return GeneratedRows(lambda index: _row(entries[index], selected.paragraphs, options), len(entries))


def build_squad(options: SquadOptions, output: Path, *, on_progress: OnProgress | None = None) -> Report:
    """Write `squad_train.jsonl` and `squad_heldout.jsonl` to the folder `output`.

    Raises DataError for a file that cannot be read and for the first question that does not fit.
    """
    files = []
    for split in SPLITS:
        rows = SquadDataset(options.model_copy(update={"split": split}), Path()).rows()
        path = output / f"squad_{split}.jsonl"
        files.append(write_rows(path, (_usable(row) for row in rows), len(rows), on_progress=on_progress))
    return Report(tuple(files))


def select(options: SquadOptions, base_dir: Path) -> Selected:
    """The questions of the options' split, in random order, and its paragraphs.

    Raises DataError if the file cannot be read, or if the split has no questions.
    """
    articles = _read(options.path, base_dir)
    left_out = {article.title for article in _read(options.without, base_dir)} if options.without else set()
    split_of = _splits([article.title for article in articles], options)
    entries: list[Entry] = []
    paragraphs: list[Document] = []
    for article in articles:
        if article.title in left_out or options.split not in ("all", split_of[article.title]):
            continue
        for number, paragraph in enumerate(article.paragraphs, 1):
            document = Document(article.title.replace("_", " "), one_line(paragraph.context))
            if not options.fits(document.text):
                continue
            paragraphs.append(document)
            place = f"{options.path} article {article.title!r} paragraph {number}"
            numbered = enumerate(paragraph.qas, 1)
            entries += [Entry(values, document, f"{place} question {n}") for n, values in numbered]
    if options.unanswerable is None:
        entries = [entry for entry in entries if not _is_impossible(entry.values)]
    if not entries:
        sides = list(split_of.values())
        raise DataError(
            f"{options.path}: no question is left for the split {options.split!r}: of {len(sides)} articles, "
            f"{sides.count('heldout')} are held out. Check `heldout`, `without` and `paragraph_words`"
        )
    Random(f"squad/{options.seed}").shuffle(entries)
    return Selected(tuple(entries), tuple(paragraphs))


def _splits(titles: Sequence[str], options: SquadOptions) -> dict[str, str]:
    """The split of each article: the list is held out, or the fraction of titles with the lowest hashes."""
    heldout = options.heldout
    if isinstance(heldout, list):
        wrong = next((title for title in heldout if title not in titles), None)
        if wrong is not None:
            near = nearest(wrong, titles)
            hint = f"; did you mean {near!r}?" if near else f". Its first articles are {', '.join(titles[:5])}"
            raise DataError(f"{options.path}: `heldout` names {wrong!r}, but there is no such article{hint}")
    else:
        ranked = sorted(dict.fromkeys(titles), key=digest_of)
        heldout = ranked[: round(heldout * len(ranked))]
    return {title: "heldout" if title in heldout else "train" for title in titles}


def _is_impossible(values: object) -> bool:
    return isinstance(values, dict) and values.get("is_impossible") is True


def _read(name: str, base_dir: Path) -> list[_Article]:
    path = find_published(name, base_dir, WHERE)
    stat = path.stat()
    return _articles(path, name, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2)
def _articles(path: Path, name: str, _version: tuple[int, int]) -> list[_Article]:
    """The articles of the file; a run reads it for several splits."""
    content = _content(path, name)
    if not isinstance(content, dict) or "data" not in content:
        raise DataError(f"{name}: {FILE.expected(described(content))}")
    articles = read(_File, content, name).data
    if not articles:
        raise DataError(f"{name} has no articles. {WHERE}")
    return articles


def _content(path: Path, name: str) -> object:
    """The JSON value of the file. Raises DataError with the expected form for JSON lines, parquet and other files."""
    try:
        return parse_json(read_text(path, name), name)
    except DataError as error:
        reason = error
    rows = read_rows(path, name, limit=1)
    if rows and rows[0].problem is None:
        raise DataError(f"{name}: {FILE.expected(form_of(rows, name))}")
    raise DataError(f"{reason}. SQuAD's form is {FILE.form}. {WHERE}")


def _usable(row: Row) -> Values:
    row.check()
    return dict(row.values)


def _row(entry: Entry, pool: Sequence[Document], options: SquadOptions) -> Row:
    try:
        question = read(_Question, entry.values, "")
        answers, evidence = _gold(question, entry.paragraph.text, options.unanswerable)
        random = Random(f"squad/{options.seed}/{question.id}")
        documents = surrounded([entry.paragraph], (), pool, options.distractors, random)
    except DataError as error:
        return Row({}, entry.source, str(error))
    values: Values = {
        "context": text_of(documents, options.headings),
        "input": question.question.strip(),
        "answers": answers,
        "evidence": evidence,
        "num_docs": len(documents),
        "title": entry.paragraph.title,
        "id": question.id,
    }
    return Row(values, entry.source)


def _gold(question: _Question, paragraph: str, unanswerable: str | None) -> tuple[list[str], list[str]]:
    """The distinct answers, and the sentence of the first. Raises DataError if an answer is not at its place."""
    if question.is_impossible:
        return [unanswerable or ""], []
    if not question.answers:
        raise DataError("field 'answers' should hold at least one answer, got an empty list")
    for number, answer in enumerate(question.answers):
        start = answer.answer_start
        there = paragraph[start : start + len(answer.text)] if start >= 0 else ""
        if not answer.text.strip() or there != one_line(answer.text):
            raise DataError(
                f"field 'answers[{number}]' should be a text at its answer_start in the paragraph: "
                f"{described(answer.text)} is not at {start}, the paragraph has {described(there)} there"
            )
    first = question.answers[0]
    evidence = sentence_around(paragraph, first.answer_start, first.answer_start + len(first.text))
    return list(dict.fromkeys(answer.text.strip() for answer in question.answers)), [evidence]


def sentence_around(text: str, begin: int, end: int) -> str:
    """The sentence of `text` that holds `text[begin:end]`, or the consecutive sentences over which that extends.

    >>> sentence_around("Ada left. Why? She was ill.", 15, 18)
    'She was ill.'
    """
    ends = unit_ends(text, "sentences")
    first = max((place for place in ends if place <= begin), default=0)
    last = next(place for place in ends if place >= end)
    return text[first:last].strip()

"""`memfactory data hotpotqa`: training and evaluation sets in MemAgent's schema from HotpotQA questions.

    build(Sources(questions), output, HotpotQaSettings(seed=0)) -> Report

A row hides a question's own paragraphs among others, at random places in each row (MemAgent's files have them at the
same places in every row). All lengths share the evaluation questions, and a longer text contains the documents of the
shorter. No training text holds an evaluation question's own paragraphs. Equal arguments give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from memfactory.data.benchmarks.hotpotqa_source import Document, Question, read_documents, read_questions
from memfactory.data.writing import CountTokens, Format, GeneratedRow, OnProgress, Report, as_training_row, write_rows
from memfactory.errors import ConfigError, DataError

OWN_DOCUMENTS = 10
"""HotpotQA's distractor setting: 2 gold paragraphs and 8 similar ones."""


@dataclass(frozen=True)
class Sources:
    """The files that questions and documents come from.

    `evaluation` is another HotpotQA file for the evaluation questions; None holds some of `questions` out. `documents`
    adds rows of `title` and `text` to the paragraphs of all questions.
    """

    questions: Path
    evaluation: Path | None = None
    documents: Path | None = None


@dataclass(frozen=True)
class HotpotQaSettings:
    """The sets to make. Raises ConfigError for impossible numbers.

    A training row has between `train_docs[0]` and `train_docs[1]` documents; there is an evaluation set for each number
    of documents in `eval_docs`. `train_rows`: None for one row per question; more rows than questions repeat them among
    other documents. Questions answered by yes or no are left out unless `keep_yes_no`.
    """

    train_docs: tuple[int, int] = (50, 80)
    eval_docs: Sequence[int] = (50, 100)
    eval_questions: int = 128
    train_rows: int | None = None
    train_format: Format = "json"
    keep_yes_no: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        docs, eval_docs = self.train_docs, self.eval_docs
        if not OWN_DOCUMENTS <= docs[0] <= docs[1]:
            problems.append(f"train_docs: expected {OWN_DOCUMENTS} <= fewest <= most, got {docs[0]} and {docs[1]}")
        if not eval_docs or min(eval_docs) < OWN_DOCUMENTS:
            problems.append(f"eval_docs: expected numbers of at least {OWN_DOCUMENTS}, got {list(eval_docs)}")
        if self.eval_questions < 1:
            problems.append(f"eval_questions: expected at least 1, got {self.eval_questions}")
        if self.train_rows is not None and self.train_rows < 1:
            problems.append(f"train_rows: expected at least 1, got {self.train_rows}")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Split:
    """Training questions and the documents to hide them among, and the same for evaluation."""

    train: tuple[Question, ...]
    evaluation: tuple[Question, ...]
    train_documents: tuple[Document, ...]
    documents: tuple[Document, ...]
    notes: tuple[str, ...]


def build(
    sources: Sources,
    output: Path,
    settings: HotpotQaSettings,
    *,
    count_tokens: CountTokens | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Write `hotpotqa_train.json` and `eval_<n>.json` for each n of `settings.eval_docs` into the folder `output`.

    Raises DataError for files that do not fit, or hold too few questions or documents.
    """
    parts = split(sources, settings)
    rows: Iterator[GeneratedRow]
    files = []
    for count in settings.eval_docs:
        rows = (eval_row(question, parts.documents, count, settings.seed) for question in parts.evaluation)
        path = output / f"eval_{count}.json"
        files.append(write_rows(path, rows, len(parts.evaluation), count_tokens=count_tokens, on_progress=on_progress))
    total = len(parts.train) if settings.train_rows is None else settings.train_rows
    rows = training_rows(parts, total, settings.train_docs, settings.seed)
    if settings.train_format == "parquet":
        rows = (as_training_row(row, "hotpotqa") for row in rows)
    path = output / f"hotpotqa_train.{settings.train_format}"
    files.insert(0, write_rows(path, rows, total, count_tokens=count_tokens, on_progress=on_progress))
    return Report(tuple(files), parts.notes)


def split(sources: Sources, settings: HotpotQaSettings) -> Split:
    """Sample the evaluation questions and keep them, their paragraphs and near copies out of training."""
    questions = read_questions(sources.questions)
    others = None if sources.evaluation is None else read_questions(sources.evaluation)
    documents = [] if sources.documents is None else read_documents(sources.documents)
    pool = _distinct(
        [*(document for question in [*questions, *(others or ())] for document in question.documents), *documents]
    )
    usable, notes = _usable(questions, settings.keep_yes_no)
    candidates = usable if others is None else _usable(others, settings.keep_yes_no)[0]
    if len(candidates) < settings.eval_questions + (others is None):
        raise DataError(
            f"{settings.eval_questions} evaluation questions are requested, but only {len(candidates)} questions can "
            "be used" + (" for training and evaluation together" if others is None else "")
        )
    sample = Random(f"hotpotqa/evaluation/{settings.seed}").sample(candidates, settings.eval_questions)
    evaluation = sorted(sample, key=lambda question: question.index)
    titles = {document.title for question in evaluation for document in question.documents}
    texts = {document.text for question in evaluation for document in question.documents}

    def clean(documents: Sequence[Document]) -> tuple[Document, ...]:
        return tuple(document for document in documents if document.title not in titles and document.text not in texts)

    ids, wordings = {question.id for question in evaluation}, {question.text for question in evaluation}
    remaining = [question for question in usable if question.id not in ids and question.text not in wordings]
    cleaned = [replace(question, documents=clean(question.documents)) for question in remaining]
    train = tuple(question for question in cleaned if question.is_answerable)
    if not train:
        raise DataError("no question is left to train on: all share their gold paragraphs with evaluation questions")
    train_documents = clean(pool)
    notes += [
        f"{len(remaining) - len(train)} training questions left out: they share a gold paragraph with an evaluation "
        "question",
        f"{len(pool) - len(train_documents)} of {len(pool)} documents belong to evaluation questions and never occur "
        "in training",
    ]
    return Split(train, tuple(evaluation), train_documents, pool, tuple(notes))


def eval_row(question: Question, pool: Sequence[Document], count: int, seed: int) -> GeneratedRow:
    """`question` among `count` documents; those of a smaller `count` are among those of a larger one."""
    name = f"hotpotqa/evaluation/{seed}/{question.id}"
    documents = _surrounded(question.documents, pool, count, Random(name))
    Random(f"{name}/{count}").shuffle(documents)
    return _row(question, documents)


def training_rows(parts: Split, total: int, docs: tuple[int, int], seed: int) -> Iterator[GeneratedRow]:
    """`total` rows in random order; a repeated question is hidden among other documents, at other places."""
    order = list(parts.train)
    Random(f"hotpotqa/train/{seed}").shuffle(order)
    for number in range(total):
        repetition, place = divmod(number, len(order))
        question = order[place]
        stream = Random(f"hotpotqa/train/{seed}/{question.id}/{repetition}")
        documents = _surrounded(question.documents, parts.train_documents, stream.randint(*docs), stream)
        stream.shuffle(documents)
        yield _row(question, documents)


def _surrounded(own: Sequence[Document], pool: Sequence[Document], count: int, stream: Random) -> list[Document]:
    """`own`, then documents of other titles sampled from `pool` until there are `count`."""
    if count > len(pool):
        raise DataError(
            f"a text of {count} documents is requested, but there are only {len(pool)}; add documents to the pool"
        )
    chosen = list(own)
    titles = {document.title for document in own}
    while len(chosen) < count:
        document = pool[stream.randrange(len(pool))]
        if document.title not in titles:
            titles.add(document.title)
            chosen.append(document)
    return chosen


def _row(question: Question, documents: Sequence[Document]) -> GeneratedRow:
    text = "\n\n".join(f"Document {number}:\n{document}" for number, document in enumerate(documents, start=1))
    return {
        "context": text,
        "input": question.text,
        "answers": [question.answer],
        "num_docs": len(documents),
        "index": question.index,
    }


def _usable(questions: Sequence[Question], keep_yes_no: bool) -> tuple[list[Question], list[str]]:
    """Questions with all their gold paragraphs, each once, and notes about those left out."""
    first = list({question.id: question for question in reversed(questions)}.values())[::-1]
    answerable = [question for question in first if question.is_answerable]
    usable = [question for question in answerable if keep_yes_no or not question.is_closed]
    left_out = {
        "repeated": len(questions) - len(first),
        "without all their gold paragraphs": len(first) - len(answerable),
        "answered by yes or no": len(answerable) - len(usable),
    }
    return usable, [f"{count} questions left out: {why}" for why, count in left_out.items() if count]


def _distinct(documents: Sequence[Document]) -> tuple[Document, ...]:
    """One document for each title, in the order of titles; documents without text are left out."""
    first: dict[str, Document] = {}
    for document in documents:
        if document.text.strip():
            first.setdefault(document.title, document)
    return tuple(first[title] for title in sorted(first))

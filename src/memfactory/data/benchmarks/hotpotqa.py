"""`memfactory data hotpotqa`: training and evaluation sets in MemAgent's schema from HotpotQA questions.

    build(questions, output, ...) -> Report

A row hides a question's own paragraphs among others. Where they lie is drawn for each row (MemAgent's files have them
at the same places in every row). Every length has the same evaluation questions, and a longer text holds the documents
of the shorter. No training text holds an evaluation question's own paragraphs. Equal arguments give equal bytes.
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
"""HotpotQA's distractor setting: 2 gold paragraphs and 8 that look like them."""


@dataclass(frozen=True)
class Split:
    """Questions that train, with the documents they may lie among, and the same for evaluation."""

    train: tuple[Question, ...]
    evaluation: tuple[Question, ...]
    train_documents: tuple[Document, ...]
    documents: tuple[Document, ...]
    notes: tuple[str, ...]


def build(
    questions: Path,
    output: Path,
    *,
    documents: Path | None = None,
    evaluation: Path | None = None,
    train_docs: tuple[int, int] = (50, 80),
    eval_docs: Sequence[int] = (50, 100),
    eval_questions: int = 128,
    train_rows: int | None = None,
    train_format: Format = "json",
    keep_yes_no: bool = False,
    seed: int = 0,
    count_tokens: CountTokens | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Write `hotpotqa_train.json` and `eval_<n>.json` for each n of `eval_docs` into the folder `output`.

    `questions` is a HotpotQA file; `evaluation` another that the evaluation questions come from (None: they are drawn
    from `questions` and held out). Other documents come from all these questions and from `documents` (rows of `title`
    and `text`). A training row has between `train_docs` documents. `train_rows` None: one row a question; more rows
    than questions ask them again among other documents. Questions answered by yes or no are left out unless kept.
    Raises ConfigError for numbers that cannot be met and DataError for files that do not fit.
    """
    _check(train_docs, eval_docs, eval_questions, train_rows)
    asked = read_questions(questions)
    held = None if evaluation is None else read_questions(evaluation)
    pool = [] if documents is None else read_documents(documents)
    parts = split(asked, held, pool, eval_questions=eval_questions, keep_yes_no=keep_yes_no, seed=seed)
    files = []
    for count in eval_docs:
        rows = (eval_row(question, parts.documents, count, seed) for question in parts.evaluation)
        path = output / f"eval_{count}.json"
        files.append(write_rows(path, rows, len(parts.evaluation), count_tokens=count_tokens, on_progress=on_progress))
    total = len(parts.train) if train_rows is None else train_rows
    made: Iterator[GeneratedRow] = training_rows(parts, total, train_docs, seed)
    if train_format == "parquet":
        made = (as_training_row(row, "hotpotqa") for row in made)
    path = output / f"hotpotqa_train.{train_format}"
    files.insert(0, write_rows(path, made, total, count_tokens=count_tokens, on_progress=on_progress))
    return Report(tuple(files), parts.notes)


def split(
    questions: Sequence[Question],
    evaluation: Sequence[Question] | None,
    documents: Sequence[Document],
    *,
    eval_questions: int,
    keep_yes_no: bool,
    seed: int,
) -> Split:
    """Draw the evaluation questions and keep them, their paragraphs and what they share away from training."""
    everything = [*questions, *(evaluation or ())]
    pool = _distinct([*(document for question in everything for document in question.documents), *documents])
    usable, notes = _usable(questions, keep_yes_no)
    candidates = usable if evaluation is None else _usable(evaluation, keep_yes_no)[0]
    if len(candidates) < eval_questions + (evaluation is None):
        raise DataError(
            f"{eval_questions} evaluation questions are asked for, but only {len(candidates)} questions can be used"
            + (" for training and evaluation together" if evaluation is None else "")
        )
    drawn = Random(f"hotpotqa/evaluation/{seed}").sample(candidates, eval_questions)
    chosen = sorted(drawn, key=lambda question: question.index)
    titles = {document.title for question in chosen for document in question.documents}
    texts = {document.text for question in chosen for document in question.documents}

    def clean(documents: Sequence[Document]) -> tuple[Document, ...]:
        return tuple(document for document in documents if document.title not in titles and document.text not in texts)

    ids, wordings = {question.id for question in chosen}, {question.text for question in chosen}
    rest = [question for question in usable if question.id not in ids and question.text not in wordings]
    cleaned = [replace(question, documents=clean(question.documents)) for question in rest]
    train = tuple(question for question in cleaned if question.is_answerable)
    if not train:
        raise DataError("no question is left to train on: all share their gold paragraphs with evaluation questions")
    train_documents = clean(pool)
    notes += [
        f"{len(rest) - len(train)} training questions left out: a gold paragraph of theirs is an evaluation question's",
        f"{len(pool) - len(train_documents)} of {len(pool)} documents belong to evaluation questions and never occur "
        "in training",
    ]
    return Split(train, tuple(chosen), train_documents, pool, tuple(notes))


def eval_row(question: Question, pool: Sequence[Document], count: int, seed: int) -> GeneratedRow:
    """`question` among `count` documents; those of a smaller `count` are among those of a larger one."""
    name = f"hotpotqa/evaluation/{seed}/{question.id}"
    documents = _surrounded(question.documents, pool, count, Random(name))
    Random(f"{name}/{count}").shuffle(documents)
    return _row(question, documents)


def training_rows(parts: Split, total: int, docs: tuple[int, int], seed: int) -> Iterator[GeneratedRow]:
    """`total` rows in a drawn order; a question that comes again lies among other documents, at other places."""
    order = list(parts.train)
    Random(f"hotpotqa/train/{seed}").shuffle(order)
    for number in range(total):
        again, place = divmod(number, len(order))
        question = order[place]
        stream = Random(f"hotpotqa/train/{seed}/{question.id}/{again}")
        documents = _surrounded(question.documents, parts.train_documents, stream.randint(*docs), stream)
        stream.shuffle(documents)
        yield _row(question, documents)


def _surrounded(own: Sequence[Document], pool: Sequence[Document], count: int, stream: Random) -> list[Document]:
    """`own`, then documents of other titles drawn from `pool` until there are `count`."""
    if count > len(pool):
        raise DataError(
            f"a text of {count} documents is asked for, but there are only {len(pool)}; give a larger pool of documents"
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
    """Questions with all their gold paragraphs, each once, and what was left out."""
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
    """One document a title, in the order of titles; none without text."""
    first: dict[str, Document] = {}
    for document in documents:
        if document.text.strip():
            first.setdefault(document.title, document)
    return tuple(first[title] for title in sorted(first))


def _check(docs: tuple[int, int], eval_docs: Sequence[int], eval_questions: int, train_rows: int | None) -> None:
    problems = []
    if not OWN_DOCUMENTS <= docs[0] <= docs[1]:
        problems.append(f"train_docs: expected {OWN_DOCUMENTS} <= fewest <= most, got {docs[0]} and {docs[1]}")
    if not eval_docs or min(eval_docs) < OWN_DOCUMENTS:
        problems.append(f"eval_docs: expected numbers of at least {OWN_DOCUMENTS}, got {list(eval_docs)}")
    if eval_questions < 1:
        problems.append(f"eval_questions: expected at least 1, got {eval_questions}")
    if train_rows is not None and train_rows < 1:
        problems.append(f"train_rows: expected at least 1, got {train_rows}")
    if problems:
        raise ConfigError(problems)

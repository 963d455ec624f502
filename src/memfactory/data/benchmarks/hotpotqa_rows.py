"""The dataset `hotpotqa`: HotpotQA's questions over their two supporting paragraphs and a few others.

Training and held-out rows share no question, no supporting paragraph and no other paragraph. The evidence is the
sentences of the supporting facts. `memfactory data hotpotqa` makes the long texts of MemAgent's sets instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from memfactory.data.base import Dataset, GeneratedRows, Row
from memfactory.data.benchmarks.hotpotqa_source import FILE, WHERE, Document, Question, read_question
from memfactory.data.benchmarks.paragraphs import ParagraphOptions, Values, one_line, surrounded, text_of
from memfactory.data.digest import digest_of
from memfactory.data.published import find_published, read_published
from memfactory.errors import DataError
from memfactory.registry import DATASETS


class HotpotQaOptions(ParagraphOptions):
    """Options of `hotpotqa`."""

    published: ClassVar[str] = WHERE
    heldout: float = Field(0.25, ge=0, le=1)
    """The fraction of the questions that is held out, chosen by the hashes of their ids. Training questions that need
    one of their supporting paragraphs are in neither split."""
    types: list[Literal["bridge", "comparison"]] | None = Field(None, min_length=1)
    """Types of questions to read; null reads all."""
    yes_no: bool = False
    """Whether questions answered by yes or no, which can be guessed, are read."""
    similar: bool = True
    """Whether the distractors are the question's own similar paragraphs, as far as there are enough in its split, or
    paragraphs of any question."""


@dataclass(frozen=True)
class Entry:
    """A row of the file: its question, or the problem that keeps it from being one."""

    source: str
    question: Question | None
    problem: str | None = None


@dataclass(frozen=True)
class Sides:
    """The entries and paragraphs of both splits."""

    entries: dict[str, list[Entry]]
    documents: dict[str, tuple[Document, ...]]


@dataclass(frozen=True)
class Pool:
    """The paragraphs that may be distractors, in order and for look-up."""

    documents: tuple[Document, ...]
    contents: frozenset[Document]


@DATASETS.register("hotpotqa")
class HotpotQaDataset(Dataset[HotpotQaOptions]):
    """HotpotQA: questions over their two supporting paragraphs and a few others, with the sentences that answer."""

    @property
    def source(self) -> str:
        return self.options.path

    def rows(self) -> Sequence[Row]:
        """The rows in random order, made on access. A question that does not fit is a row with a problem."""
        options = self.options
        entries = _read(options.path, self.base_dir)
        if options.without:
            entries = _apart_from(entries, _read(options.without, self.base_dir))
        sides = divided(entries, options)
        chosen = sides.entries[options.split]
        documents = tuple(document for document in sides.documents[options.split] if options.fits(document.text))
        if not chosen:
            raise DataError(
                f"{options.path}: of {len(entries)} questions none is left for the split {options.split!r}. Check "
                "`heldout`, `without`, `types`, `yes_no` and `paragraph_words`"
            )
        Random(f"hotpotqa/{options.seed}").shuffle(chosen)
        chosen = chosen[: options.limit]
        pool = Pool(documents, frozenset(documents))
        return GeneratedRows(lambda index: _row(chosen[index], pool, options), len(chosen))


def divided(entries: Sequence[Entry], options: HotpotQaOptions) -> Sides:
    """The entries that the options select and their paragraphs, by split (train, heldout and all).

    A paragraph of a held-out question is held out, unless it supports a training question. Rows with a problem belong
    to every split.
    """
    usable = [entry for entry in entries if entry.question is None or _is_selected(entry.question, options)]
    questions = {entry.question.id: entry.question for entry in usable if entry.question is not None}
    ranked = sorted(questions, key=digest_of)
    ids = set(ranked[: round(options.heldout * len(ranked))])
    wordings = {question.text for question in questions.values() if question.id in ids}
    held = [question for question in questions.values() if question.text in wordings]
    supports = _texts(held, supporting=True)
    train = [q for q in questions.values() if q.text not in wordings and not _texts([q], supporting=True) & supports]
    held_out = _texts(held) - _texts(train, supporting=True)
    everything = _distinct(entry.question for entry in entries if entry.question is not None)

    def is_held_out(document: Document) -> bool:
        return document.title in held_out or document.text in held_out

    return Sides(
        {"train": _among(usable, train), "heldout": _among(usable, held), "all": usable},
        {
            "train": tuple(document for document in everything if not is_held_out(document)),
            "heldout": tuple(document for document in _distinct(held) if is_held_out(document)),
            "all": everything,
        },
    )


def _is_selected(question: Question, options: HotpotQaOptions) -> bool:
    has_type = options.types is None or question.type in options.types
    support = [document for document in question.documents if document.title in question.gold]
    return (
        question.is_answerable
        and has_type
        and (options.yes_no or not question.is_closed)
        and all(options.fits(document.text) for document in support)
    )


def _among(entries: Sequence[Entry], questions: Sequence[Question]) -> list[Entry]:
    ids = {question.id for question in questions}
    return [entry for entry in entries if entry.question is None or entry.question.id in ids]


def _texts(questions: Sequence[Question], *, supporting: bool = False) -> set[str]:
    """The titles and texts of the questions' paragraphs: of all, or of those that answer."""
    documents = [d for q in questions for d in q.documents if not supporting or d.title in q.gold]
    return {document.title for document in documents} | {document.text for document in documents}


def _distinct(questions: Iterable[Question]) -> tuple[Document, ...]:
    """The questions' paragraphs, one of each title."""
    first: dict[str, Document] = {}
    for question in questions:
        for document in question.documents:
            if document.text.strip():
                first.setdefault(document.title, document)
    return tuple(first.values())


def _apart_from(entries: Sequence[Entry], others: Sequence[Entry]) -> list[Entry]:
    """The entries that share no question and no supporting paragraph with `others`, without the paragraphs of those."""
    questions = [entry.question for entry in others if entry.question is not None]
    ids, wordings, texts = {q.id for q in questions}, {q.text for q in questions}, _texts(questions)
    remaining = []
    for entry in entries:
        question = entry.question
        if question is None:
            remaining.append(entry)
        elif question.id not in ids and question.text not in wordings:
            own = tuple(d for d in question.documents if d.title not in texts and d.text not in texts)
            remaining.append(Entry(entry.source, replace(question, documents=own)))
    return remaining


def _read(name: str, base_dir: Path) -> list[Entry]:
    path = find_published(name, base_dir, WHERE)
    stat = path.stat()
    return list(_entries(path, name, (stat.st_mtime_ns, stat.st_size)))


@lru_cache(maxsize=2)
def _entries(path: Path, name: str, _version: tuple[int, int]) -> tuple[Entry, ...]:
    """The entries of the file, each question once; a run reads it for several splits."""
    rows = read_published(path, name, FILE)
    entries: dict[str, Entry] = {}
    for index, row in enumerate(rows):
        try:
            question = read_question(index, row)
        except DataError as error:
            problem = row.problem or str(error)
            entries[row.source] = Entry(row.source, None, problem)
        else:
            entries.setdefault(question.id, Entry(row.source, question))
    return tuple(entries.values())


def _row(entry: Entry, pool: Pool, options: HotpotQaOptions) -> Row:
    question = entry.question
    if question is None:
        return Row({}, entry.source, entry.problem)
    own = [document for document in question.documents if document.title in question.gold]
    others = [document for document in question.documents if document.title not in question.gold]
    try:
        documents = surrounded(
            own,
            [document for document in others if options.similar and document in pool.contents],
            pool.documents,
            options.distractors,
            Random(f"hotpotqa/{options.seed}/{question.id}"),
        )
    except DataError as error:
        return Row({}, entry.source, str(error))
    order = [document.title for document in documents]
    evidence = sorted(question.evidence, key=lambda fact: order.index(fact[0]))
    lines = [Document(document.title, one_line(document.text).strip()) for document in documents]
    values: Values = {
        "context": text_of(lines, options.headings),
        "input": question.text.strip(),
        "answers": [question.answer.strip()],
        "evidence": [one_line(sentence) for _, sentence in evidence],
        "num_docs": len(documents),
        "id": question.id,
    }
    if question.type is not None:
        values["question_type"] = question.type
    return Row(values, entry.source)

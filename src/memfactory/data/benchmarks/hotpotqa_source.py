"""HotpotQA's own files: questions with their paragraphs, and pools of paragraphs (arXiv 1809.09600)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field

from memfactory.data.base import Row
from memfactory.data.fields import AnyText, ModelT, RowModel, Text, broken_rule, described, read
from memfactory.data.published import Published, read_published
from memfactory.data.rows import read_rows
from memfactory.errors import DataError

WHERE = (
    "HotpotQA is hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json of https://hotpotqa.github.io (CC BY-SA 4.0)"
)
FILE = Published(
    "HotpotQA",
    "rows with `_id`, `question`, `answer`, `supporting_facts` and `context`",
    WHERE,
    "questions",
    frozenset({"_id", "supporting_facts"}),
)


def _pairs(second: str, value: object) -> object:
    """[[title, x], ...], also from the hub's {"title": [...], second: [...]}."""
    if isinstance(value, Mapping) and isinstance(value.get("title"), list) and isinstance(value.get(second), list):
        value = list(zip(value["title"], value[second], strict=False))
    pairs = value if isinstance(value, list) else []
    wrong = next((pair for pair in pairs if not isinstance(pair, (list, tuple)) or len(pair) != 2), None)
    if not pairs or wrong is not None:
        got = described(value if wrong is None else wrong)
        raise broken_rule(f"should hold [title, {second}] pairs, got {got}")
    return pairs


def _sentences(value: object) -> list[str]:
    """The sentences of a paragraph."""
    sentences = [value] if isinstance(value, str) else value
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise broken_rule(f"should hold sentences, got {described(value)}")
    return sentences


def _paragraph(value: object) -> str:
    """A paragraph's sentences joined as they stand: HotpotQA's begin with their own space."""
    return "".join(_sentences(value))


Paragraph = Annotated[AnyText, BeforeValidator(_paragraph)]
Sentences = Annotated[list[AnyText], BeforeValidator(_sentences)]


@dataclass(frozen=True)
class Document:
    """One paragraph of an article. Two paragraphs of one title count as the same article."""

    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True)
class Question:
    """A question, its own paragraphs, and the titles of those that answer it. `index` is its place in the file.

    `evidence` are the sentences that answer it, each with its title; one that its paragraph lacks is left out. `type`
    is bridge or comparison.
    """

    index: int
    id: str
    text: str
    answer: str
    gold: frozenset[str]
    documents: tuple[Document, ...]
    evidence: tuple[tuple[str, str], ...] = ()
    type: str | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the answer is yes or no: it can be guessed."""
        return self.answer.strip().lower() in {"yes", "no"}

    @property
    def is_answerable(self) -> bool:
        """Whether all its gold paragraphs are among its documents."""
        return bool(self.gold) and self.gold <= {document.title for document in self.documents}


class _QuestionRow(RowModel):
    id: Text = Field(validation_alias=AliasChoices("id", "_id"))
    question: Text
    answer: Text
    supporting_facts: Annotated[list[tuple[AnyText, object]], BeforeValidator(partial(_pairs, "sent_id"))]
    context: Annotated[list[tuple[AnyText, Sentences]], BeforeValidator(partial(_pairs, "sentences"))]
    type: object = None


class _DocumentRow(RowModel):
    title: Text
    text: Paragraph


def read_questions(path: Path) -> list[Question]:
    """HotpotQA's distractor files: the official JSON, JSON lines of the same, or parquet as the hub has it.

    Raises DataError naming the row and the field of the first row that does not fit.
    """
    rows = read_published(_existing(path), str(path), FILE)
    return [_question(index, _values(_QuestionRow, row)) for index, row in enumerate(rows)]


def read_documents(path: Path) -> list[Document]:
    """A pool of paragraphs, one per row: `title` and `text` (a text, or its sentences)."""
    rows = read_rows(_existing(path), str(path))
    if not rows:
        raise DataError(f"{path} has no rows")
    return [Document(row.title, row.text) for row in (_values(_DocumentRow, row) for row in rows)]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    return path


def _values(model: type[ModelT], row: Row) -> ModelT:
    row.check()
    return read(model, row.values, row.source)


def read_question(index: int, row: Row) -> Question:
    """One row of HotpotQA's distractor files. Raises DataError naming the field that does not fit, without the row."""
    row.check()
    return _question(index, read(_QuestionRow, row.values, ""))


def _question(index: int, row: _QuestionRow) -> Question:
    gold = frozenset(title for title, _ in row.supporting_facts)
    documents = tuple(Document(title, "".join(sentences)) for title, sentences in row.context)
    type = row.type if isinstance(row.type, str) else None
    return Question(index, row.id, row.question, row.answer, gold, documents, tuple(_evidence(row)), type)


def _evidence(row: _QuestionRow) -> Iterator[tuple[str, str]]:
    paragraphs = dict(reversed(row.context))
    for title, number in row.supporting_facts:
        sentences = paragraphs.get(title, [])
        if isinstance(number, int) and 0 <= number < len(sentences) and sentences[number].strip():
            yield title, sentences[number].strip()

"""HotpotQA's own files: questions with their paragraphs, and pools of paragraphs (arXiv 1809.09600)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memfactory.data.base import Row
from memfactory.data.rows import described, read_rows
from memfactory.errors import DataError


@dataclass(frozen=True)
class Document:
    """One paragraph of an article. Two paragraphs of one title count as the same article."""

    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True)
class Question:
    """A question, its own paragraphs, and the titles of those that answer it. `index` is its place in the file."""

    index: int
    id: str
    text: str
    answer: str
    gold: frozenset[str]
    documents: tuple[Document, ...]

    @property
    def is_closed(self) -> bool:
        """Whether the answer is yes or no: it can be guessed."""
        return self.answer.strip().lower() in {"yes", "no"}

    @property
    def is_answerable(self) -> bool:
        """Whether all its gold paragraphs are there."""
        return bool(self.gold) and self.gold <= {document.title for document in self.documents}


def read_questions(path: Path) -> list[Question]:
    """HotpotQA's distractor files: the official JSON, JSON lines of the same, or parquet as the hub has it.

    Raises DataError naming the row and the field of the first row that does not fit.
    """
    return [_question(row, index) for index, row in enumerate(_rows(path))]


def read_documents(path: Path) -> list[Document]:
    """A pool of paragraphs, one a row: `title` and `text` (a text, or its sentences)."""
    return [Document(_text(row, "title"), _sentences(row, "text", _value(row, "text"))) for row in _rows(path)]


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    rows = read_rows(path, str(path))
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _question(row: Row, index: int) -> Question:
    name = "id" if "id" in row.values else "_id"
    return Question(
        index,
        _text(row, name),
        _text(row, "question"),
        _text(row, "answer"),
        frozenset(title for title, _ in _pairs(row, "supporting_facts", "sent_id")),
        tuple(Document(title, _sentences(row, "context", said)) for title, said in _pairs(row, "context", "sentences")),
    )


def _value(row: Row, field: str) -> object:
    if row.problem is not None:
        raise DataError(f"{row.source}: {row.problem}")
    if field not in row.values:
        raise DataError(f"{row.source} has no field {field!r}; it has {', '.join(row.values) or 'no fields'}")
    return row.values[field]


def _text(row: Row, field: str) -> str:
    value = _value(row, field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.source}: field {field!r} should be a text, got {described(value)}")
    return value


def _pairs(row: Row, field: str, second: str) -> list[tuple[str, object]]:
    """[[title, x], ...], or the hub's {"title": [...], second: [...]}."""
    value = _value(row, field)
    if isinstance(value, Mapping) and isinstance(value.get("title"), list) and isinstance(value.get(second), list):
        pairs: Sequence[object] = list(zip(value["title"], value[second], strict=False))
    else:
        pairs = value if isinstance(value, list) else []
    found = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise DataError(f"{row.source}: field {field!r} should hold [title, {second}] pairs, got {described(pair)}")
        found.append((pair[0], pair[1]))
    if not found:
        raise DataError(f"{row.source}: field {field!r} should hold [title, {second}] pairs, got {described(value)}")
    return found


def _sentences(row: Row, field: str, value: object) -> str:
    """A paragraph's sentences joined as they stand: HotpotQA's begin with their own space."""
    sentences = [value] if isinstance(value, str) else value
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise DataError(f"{row.source}: field {field!r} should hold sentences, got {described(value)}")
    return "".join(sentences)

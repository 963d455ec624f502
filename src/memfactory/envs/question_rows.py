"""Rows about a question over a text as tasks: MemAgent's parquet and JSON, RULER's rows, and your own field names.

| form | question | text | gold answers | id |
|---|---|---|---|---|
| MemAgent JSON | `input` | `context` | `answers` | `index` |
| MemAgent parquet | the last user message of `prompt` | `context` | `reward_model.ground_truth` | `extra_info.index` |
| RULER as MemAgent publishes it | `input` | `context` | `outputs` | `index` |
| RULER's own | the last line of `input` | the lines before it | `outputs` | `index` |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Literal

from memfactory.data.base import Row
from memfactory.data.rows import described
from memfactory.errors import DataError
from memfactory.registry import Options
from memfactory.types import Scalar, Task, frozen

Kind = Literal["qa", "ruler", "ruler_qa"]

QUESTIONS = ("input", "question", "prompt", "extra_info.question")
ANSWERS = ("answers", "outputs", "reward_model.ground_truth", "answer")
IDS = ("id", "_id", "index", "extra_info.index")
KEPT = ("num_docs", "extra_info.num_docs", "length", "index", "extra_info.index")


class FieldNames(Options):
    """Fields of your own rows; `a.b` is field b of the object a. null: the names of the published forms."""

    question: str | None = None
    """The question: a text, or chat messages of which the last user message is taken."""
    context: str | None = None
    """The text that is read."""
    answers: str | None = None
    """The gold answer or answers."""
    id: str | None = None
    """What names the row in results."""


def read_task(row: Row, names: FieldNames) -> Task:
    """The task of `row`. Raises DataError naming the row, the field, what was given and what was expected."""
    question_field, question = _find(row, names.question, QUESTIONS, "question")
    question = _question(row, question_field, question)
    answers_field, answers = _find(row, names.answers, ANSWERS, "gold answers")
    golds = _answers(row, answers_field, answers)
    if names.context is None and answers_field == "outputs" and _get(row.values, "context") is None:
        context, question = _split_ruler(row, question_field, question)
    else:
        context = _text(row, *_find(row, names.context, ("context",), "text"))
    meta: dict[str, Scalar] = {"kind": _kind(answers_field, _get(row.values, "answer_prefix"), context)}
    for field in KEPT:
        value = _get(row.values, field)
        if isinstance(value, (str, int, float)):
            meta.setdefault(field.rpartition(".")[2], value)
    return Task(_id(row, names.id, question), question, golds, context, meta=frozen(meta))


def _get(values: Mapping[str, object], field: str) -> object:
    """The value of `field`, None where it is not there."""
    if field in values:
        return values[field]
    outer, dot, inner = field.partition(".")
    nested = values.get(outer)
    return _get(nested, inner) if dot and isinstance(nested, Mapping) else None


def _find(row: Row, own: str | None, published: tuple[str, ...], what: str) -> tuple[str, object]:
    """The first field of the row that is there, with its value."""
    wanted = (own,) if own is not None else published
    for field in wanted:
        value = _get(row.values, field)
        if value is not None:
            return field, value
    fields = ", ".join(map(str, row.values)) or "no fields"
    null = [field for field in wanted if field in row.values]
    raise DataError(
        f"{row.source} has no {what}: "
        + (f"field {null[0]!r} is null" if null else f"expected {' or '.join(map(repr, wanted))}; it has {fields}")
    )


def _text(row: Row, field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.source}: field {field!r} should be a text, got {described(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.source}: field {field!r} should be a text, but character {error.start} is half of a surrogate pair"
        ) from None
    return value


def _question(row: Row, field: str, value: object) -> str:
    if not isinstance(value, (list, tuple)):
        return _text(row, field, value)
    said = [
        message.get("content") for message in value if isinstance(message, Mapping) and message.get("role") == "user"
    ]
    if not said:
        raise DataError(
            f"{row.source}: field {field!r} should be a text, or chat messages with one of role 'user', "
            f"got {described(value)}"
        )
    return _text(row, f"{field}[].content", said[-1])


def _answers(row: Row, field: str, value: object) -> tuple[str, ...]:
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given:
        raise DataError(f"{row.source}: field {field!r} should hold at least one gold answer, got an empty list")
    answers = []
    for number, answer in enumerate(given):
        place = f"{field}[{number}]" if isinstance(value, (list, tuple)) else field
        if isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer):
            answer = str(answer)
        answers.append(_text(row, place, answer))
    return tuple(answers)


def _split_ruler(row: Row, field: str, prompt: str) -> tuple[str, str]:
    """RULER's own prompt as text and question."""
    context, _, question = prompt.strip().rpartition("\n")
    if not context:
        raise DataError(
            f"{row.source}: there is no field 'context', and field {field!r} is one line; "
            "expected RULER's prompt, whose last line is the question"
        )
    return context.strip(), question


def _kind(answers_field: str, answer_prefix: object, context: str) -> Kind:
    """RULER's question answering tasks have documents for a text and a bare "Answer:" for a prefix."""
    if answers_field != "outputs":
        return "qa"
    bare = isinstance(answer_prefix, str) and answer_prefix.strip() == "Answer:"
    return "ruler_qa" if bare or "Document 1:\n" in context else "ruler"


def _id(row: Row, own: str | None, question: str) -> str:
    """The row's own name, else one made from its question, so that it is the same in every length of a set."""
    for field in (own,) if own is not None else IDS:
        value = _get(row.values, field)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, (str, int, float)) and str(value).strip():
            return str(value)
    if own is not None:
        raise DataError(
            f"{row.source}: field {own!r} should be a text or a number, got {described(_get(row.values, own))}"
        )
    return blake2b(question.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

"""Rows about a question over a text as tasks: MemAgent's parquet and JSON, RULER's rows, and your own field names.

| form | question | text | gold answers | id |
|---|---|---|---|---|
| MemAgent JSON | `input` | `context` | `answers` | `index` |
| MemAgent parquet | the last user message of `prompt` | `context` | `reward_model.ground_truth` | `extra_info.index` |
| RULER as MemAgent publishes it | `input` | `context` | `outputs` | `index` |
| RULER's own | the last line of `input` | the lines before it | `outputs` | `index` |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from memfactory.data.base import Row
from memfactory.data.rows import described, is_number
from memfactory.envs.row_fields import answers_of, find_field, id_of, text_of, value_at
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
    question_field, question = find_field(row, names.question, QUESTIONS, "question")
    question = _question(row, question_field, question)
    answers_field, answers = find_field(row, names.answers, ANSWERS, "gold answers")
    golds = answers_of(row, answers_field, answers)
    if names.context is None and answers_field == "outputs" and value_at(row.values, "context") is None:
        context, question = _split_ruler(row, question_field, question)
    else:
        context = text_of(row, *find_field(row, names.context, ("context",), "text"))
    meta: dict[str, Scalar] = {"kind": _kind(answers_field, value_at(row.values, "answer_prefix"), context)}
    for field in KEPT:
        value = value_at(row.values, field)
        if isinstance(value, (str, bool)) or is_number(value):
            meta.setdefault(field.rpartition(".")[2], value)
    return Task(_id(row, names.id, question), question, golds, context, meta=frozen(meta))


def _question(row: Row, field: str, value: object) -> str:
    if not isinstance(value, (list, tuple)):
        return text_of(row, field, value)
    said = [
        message.get("content") for message in value if isinstance(message, Mapping) and message.get("role") == "user"
    ]
    if not said:
        raise DataError(
            f"{row.source}: field {field!r} should be a text, or chat messages with one of role 'user', "
            f"got {described(value)}"
        )
    return text_of(row, f"{field}[].content", said[-1])


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
    """The row's own name; under `own` there must be one."""
    if own is None:
        return id_of(row, IDS, question)
    value = value_at(row.values, own)
    if not is_number(value) and not (isinstance(value, str) and value.strip()):
        raise DataError(f"{row.source}: field {own!r} should be a text or a number, got {described(value)}")
    return id_of(row, (own,), question)

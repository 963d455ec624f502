"""Rows of questions about texts as tasks: MemAgent's parquet and JSON, RULER's rows, and your own field names.

| form | question | text | gold answers | id |
|---|---|---|---|---|
| MemAgent JSON | `input` | `context` | `answers` | `index` |
| MemAgent parquet | the last user message of `prompt` | `context` | `reward_model.ground_truth` | `extra_info.index` |
| RULER as MemAgent publishes it | `input` | `context` | `outputs` | `index` |
| RULER's own | the last line of `input` | the lines before it | `outputs` | `index` |

Rows of any form may have `evidence` and `outdated`: lists of sentences of the text (see `Task.support`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator

from memfactory.data.base import Row
from memfactory.data.fields import (
    AnyText,
    RowModel,
    Text,
    described,
    expected,
    first_name,
    is_number,
    missing,
    read,
    value_at,
)
from memfactory.envs.row_fields import GoldAnswers, id_of
from memfactory.errors import DataError
from memfactory.registry import Options
from memfactory.types import Scalar, Task, frozen


def _last_user_message(value: object) -> object:
    """The question in chat messages: the content of the last user message; other values as they are."""
    if not isinstance(value, (list, tuple)):
        return value
    messages = [message for message in value if isinstance(message, Mapping) and message.get("role") == "user"]
    if not messages:
        raise expected("a text, or chat messages with one of role 'user'")
    return messages[-1].get("content")


def _listed(value: object) -> object:
    """A text by itself as a list; null as an empty one."""
    return () if value is None else (value,) if isinstance(value, str) else value


Sentences = Annotated[tuple[AnyText, ...], BeforeValidator(_listed)]
Kind = Literal["qa", "ruler", "ruler_qa"]

QUESTIONS = ("input", "question", "prompt", "extra_info.question")
ANSWERS = ("answers", "outputs", "reward_model.ground_truth", "answer")
IDS = ("id", "_id", "index", "extra_info.index")
META = ("num_docs", "extra_info.num_docs", "length", "index", "extra_info.index")


class FieldNames(Options):
    """Field names of your own rows; `a.b` is the field b of the object a; null for the published forms' names."""

    question: str | None = None
    """The question: a text, or chat messages whose last user message is the question."""
    context: str | None = None
    """The text to read."""
    answers: str | None = None
    """The gold answer or answers."""
    id: str | None = None
    """The row's name in results."""
    evidence: str | None = None
    """The sentences of the text that hold the answer, in its order; no prompt shows them."""
    outdated: str | None = None
    """The sentences of the evidence that a later one corrects."""


class _QuestionRow(RowModel):
    question: Annotated[Text, BeforeValidator(_last_user_message)]
    answers: GoldAnswers
    context: Text | None = None
    evidence: Sentences = ()
    outdated: Sentences = ()


def read_task(row: Row, fields: FieldNames) -> Task:
    """The task of `row`. Raises DataError naming the row, the field, its value and the expected form."""
    names = {
        "question": _find(row, fields.question, QUESTIONS, "question"),
        "answers": _find(row, fields.answers, ANSWERS, "gold answers"),
    }
    is_ruler_prompt = (
        fields.context is None and names["answers"] == "outputs" and value_at(row.values, "context") is None
    )
    if not is_ruler_prompt:
        names["context"] = _find(row, fields.context, ("context",), "text")
    for field, own in (("evidence", fields.evidence), ("outdated", fields.outdated)):
        if own is not None or _is_texts(value_at(row.values, field)):
            names[field] = own or field
    values = read(
        _QuestionRow, {field: value_at(row.values, name) for field, name in names.items()}, row.source, names=names
    )
    question, context = values.question, values.context
    if context is None:
        context, question = _split_ruler(row, names["question"], question)
    meta: dict[str, Scalar] = {"kind": _kind(names["answers"], value_at(row.values, "answer_prefix"), context)}
    for name in META:
        value = value_at(row.values, name)
        if isinstance(value, (str, bool)) or is_number(value):
            meta.setdefault(name.rpartition(".")[2], value)
    return Task(
        _id(row, fields.id, question),
        question,
        values.answers,
        context,
        support=values.evidence,
        outdated=values.outdated,
        meta=frozen(meta),
    )


def _is_texts(value: object) -> bool:
    """Whether `value` is a list of texts; published rows may hold something else in a field called evidence."""
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)


def _find(row: Row, own: str | None, published: tuple[str, ...], title: str) -> str:
    """The name of the first field that is not null: the user's own, or one of the published names."""
    names = published if own is None else (own,)
    name = first_name(row.values, names)
    if name is None:
        raise missing(row.source, title, names, row.values)
    return name


def _split_ruler(row: Row, field: str, prompt: str) -> tuple[str, str]:
    """RULER's own prompt, split into text and question."""
    context, _, question = prompt.strip().rpartition("\n")
    if not context:
        raise DataError(
            f"{row.source}: there is no field 'context', and field {field!r} is one line; "
            "expected RULER's prompt, whose last line is the question"
        )
    return context.strip(), question


def _kind(answers_field: str, answer_prefix: object, context: str) -> Kind:
    """The kind of a row: RULER's question-answering tasks have numbered documents or the bare prefix "Answer:"."""
    if answers_field != "outputs":
        return "qa"
    bare = isinstance(answer_prefix, str) and answer_prefix.strip() == "Answer:"
    return "ruler_qa" if bare or "Document 1:\n" in context else "ruler"


def _id(row: Row, own: str | None, question: str) -> str:
    """The row's id; required if the config names its field, `own`."""
    if own is None:
        return id_of(row, IDS, question)
    value = value_at(row.values, own)
    if not is_number(value) and not (isinstance(value, str) and value.strip()):
        raise DataError(f"{row.source}: field {own!r} should be a text or a number, got {described(value)}")
    return id_of(row, (own,), question)

"""Rows of conversations for supervised fine-tuning, in three forms: messages, ShareGPT and Alpaca.

| form | fields |
|---|---|
| messages | `messages`: a list of `role` (system, user, assistant) and `content` (a text, or parts of type text) |
| ShareGPT | `conversations`: a list of `from` (human, gpt, system) and `value`; optionally `system` |
| Alpaca | `instruction`, `output`; optionally `input`, `system` and `history` (pairs of question and answer) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from memfactory.data.base import Row
from memfactory.data.fields import AnyText, RowModel, expected, read
from memfactory.errors import DataError
from memfactory.types import Message, Role

SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}


def _joined(content: object) -> object:
    """Content in parts as one text, if all parts are texts."""
    parts = list(content) if isinstance(content, (list, tuple)) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    complete = parts and len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if complete else content


def _pair(value: object) -> object:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise expected("a pair of question and answer")
    return value


Content = Annotated[AnyText, BeforeValidator(_joined)]
Pair = Annotated[tuple[AnyText, AnyText], BeforeValidator(_pair)]


class _Message(RowModel):
    role: Role
    content: Content


class _Messages(RowModel):
    messages: list[_Message] = Field(min_length=1, description="a list of messages")


class _Utterance(RowModel):
    speaker: Literal["system", "user", "assistant", "human", "gpt"] = Field(validation_alias="from")
    value: Content


class _ShareGpt(RowModel):
    conversations: list[_Utterance] = Field(min_length=1, description="a list of messages")
    system: AnyText | None = None


class _Alpaca(RowModel):
    instruction: AnyText
    output: AnyText
    input: AnyText | None = None
    system: AnyText | None = None
    history: list[Pair] | None = Field(None, description="a list of pairs")


def conversation(row: Row) -> tuple[Message, ...]:
    """The messages of `row`. Raises DataError that names the row, the field, its value and the expected form."""
    row.check()
    field = next((field for field in FORMS if row.values.get(field) is not None), None)
    if field is None:
        fields = ", ".join(map(str, row.values)) or "none"
        raise DataError(
            f"{row.source}: field 'messages' should be a list of messages (or 'conversations' as in ShareGPT, or "
            f"'instruction' and 'output' as in Alpaca); the row's fields: {fields}"
        )
    messages = FORMS[field](row)
    replies = [message for message in messages if message.role == "assistant"]
    if not replies:
        raise DataError(f"{row.source}: no message is the assistant's, so there is nothing to learn")
    if not any(reply.content.strip() for reply in replies):
        raise DataError(f"{row.source}: all of the assistant's messages are empty, so there is nothing to learn")
    if messages[0].role == "assistant":
        raise DataError(f"{row.source}: the first message is the assistant's; a system or user message should precede")
    return messages


def _messages(row: Row) -> tuple[Message, ...]:
    return tuple(Message(one.role, one.content) for one in read(_Messages, row.values, row.source).messages)


def _sharegpt(row: Row) -> tuple[Message, ...]:
    values = read(_ShareGpt, row.values, row.source)
    messages = (Message(SHAREGPT_ROLES[one.speaker], one.value) for one in values.conversations)
    return (*_system(values.system), *messages)


def _alpaca(row: Row) -> tuple[Message, ...]:
    values = read(_Alpaca, row.values, row.source)
    history = [
        message
        for question, answer in values.history or ()
        for message in (Message("user", question), Message("assistant", answer))
    ]
    question = "\n".join(text for text in (values.instruction, values.input) if text)
    return (*_system(values.system), *history, Message("user", question), Message("assistant", values.output))


FORMS: Mapping[str, Callable[[Row], tuple[Message, ...]]] = {
    "messages": _messages,
    "conversations": _sharegpt,
    "instruction": _alpaca,
}


def _system(content: str | None) -> tuple[Message, ...]:
    return (Message("system", content),) if content else ()

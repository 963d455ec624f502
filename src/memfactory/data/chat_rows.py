"""Rows of conversations to learn from, in three forms: messages, ShareGPT and Alpaca. It knows no model.

| form | fields |
|---|---|
| messages | `messages`: a list of `role` (system, user, assistant) and `content` (a text, or parts of type text) |
| ShareGPT | `conversations`: a list of `from` (human, gpt, system) and `value`; perhaps `system` |
| Alpaca | `instruction`, `output`; perhaps `input`, `system` and `history` (pairs of question and answer) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memfactory.data.base import Row
from memfactory.data.rows import described
from memfactory.errors import DataError
from memfactory.types import Message, Role

ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
SPEAKERS: Mapping[str, Role] = {**ROLES, "human": "user", "gpt": "assistant"}


def conversation(row: Row) -> tuple[Message, ...]:
    """The messages of `row`. Raises DataError that names the row, the field, what was given and expected."""
    if row.problem is not None:
        raise DataError(f"{row.source}: {row.problem}")
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
    return tuple(
        _message(value, ("role", "content"), ROLES, f"{row.source}: messages[{index}]")
        for index, value in enumerate(_list(row, "messages"))
    )


def _sharegpt(row: Row) -> tuple[Message, ...]:
    told = tuple(
        _message(value, ("from", "value"), SPEAKERS, f"{row.source}: conversations[{index}]")
        for index, value in enumerate(_list(row, "conversations"))
    )
    return (*_system(row), *told)


def _alpaca(row: Row) -> tuple[Message, ...]:
    before: list[Message] = []
    history = row.values.get("history")
    if history is not None and not isinstance(history, (list, tuple)):
        raise DataError(f"{row.source}: field 'history' should be a list of pairs, got {described(history)}")
    for index, pair in enumerate(history or ()):
        place = f"{row.source}: history[{index}]"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(f"{place} should be a pair of question and answer, got {described(pair)}")
        before += [Message("user", _text(pair[0], place)), Message("assistant", _text(pair[1], place))]
    asked, more = (_optional(row, field) for field in ("instruction", "input"))
    output = _text(row.values.get("output"), f"{row.source}: field 'output'")
    question = "\n".join(part for part in (asked, more) if part)
    return (*_system(row), *before, Message("user", question), Message("assistant", output))


FORMS: Mapping[str, Callable[[Row], tuple[Message, ...]]] = {
    "messages": _messages,
    "conversations": _sharegpt,
    "instruction": _alpaca,
}


def _list(row: Row, field: str) -> list[object]:
    given = row.values[field]
    if not isinstance(given, (list, tuple)) or not given:
        raise DataError(f"{row.source}: field {field!r} should be a list of messages, got {described(given)}")
    return list(given)


def _message(value: object, fields: tuple[str, str], roles: Mapping[str, Role], place: str) -> Message:
    said, held = fields
    if not isinstance(value, Mapping):
        raise DataError(f"{place} should be an object with {said} and {held}, got {value!r:.80}")
    role, content = value.get(said), value.get(held)
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"{place}.{said} should be one of {', '.join(roles)}, got {role!r:.80}")
    return Message(roles[role], _text(_joined(content), f"{place}.{held}"))


def _joined(content: object) -> object:
    """Content in parts as one text, where all parts are texts."""
    parts = list(content) if isinstance(content, (list, tuple)) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    whole = parts and len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if whole else content


def _system(row: Row) -> tuple[Message, ...]:
    said = _optional(row, "system")
    return (Message("system", said),) if said else ()


def _optional(row: Row, field: str) -> str:
    value = row.values.get(field)
    return "" if value is None else _text(value, f"{row.source}: field {field!r}")


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} should be a text, got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place} should be a text, but character {error.start} is half of a surrogate pair") from None
    return value

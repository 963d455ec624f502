"""A chat completion from the server-sent events of a streamed one. It does not know the meaning of its fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from memfactory.engines.endpoint import shown_body
from memfactory.engines.pool import TryAgain

# No JSON value begins as an event does: with a field or a comment.
_EVENTS = re.compile(rb"\s*(?:data|event|id|retry)?:")
_END = "[DONE]"
_JOINED = ("content", "reasoning_content", "reasoning", "thinking", "refusal")


def without_stream(body: bytes) -> bytes:
    """The body of the completion that the events in `body` make up; any other body as it is.

    Raises TryAgain for a stream that ends before its reply does; ValueError, TypeError or AttributeError for events
    that are no chunks.
    """
    if not _EVENTS.match(body) or b"data:" not in body:
        return body
    parts: dict[str, list[Any]] = {}
    finish: object = None
    for data in _events(body.decode()):
        if data == _END:
            finish = finish or "stop"
            break
        chunk = json.loads(data)
        if chunk.get("error"):
            return json.dumps({"error": chunk["error"]}).encode()
        # The last chunk may hold the usage alone.
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                finish = choice.get("finish_reason") or finish
                for name, value in (choice.get("delta") or {}).items():
                    if value:
                        parts.setdefault(name, []).append(value)
    if finish is None:
        raise TryAgain(f"the stream ended before the reply did: {shown_body(body)}")
    message = {name: _joined(values) if name in _JOINED else values[-1] for name, values in parts.items()}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


def _events(text: str) -> Iterator[str]:
    """The data of each event: its lines that begin with `data:`, joined."""
    lines: list[str] = []
    for line in (*text.split("\n"), ""):
        line = line.removesuffix("\r")
        if line.startswith("data:"):
            lines.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and lines:
            yield "\n".join(lines)
            lines = []


def _joined(values: list[Any]) -> Any:
    """The texts, or the lists of content parts, of all chunks as one."""
    if isinstance(values[0], str):
        return "".join(values)
    return [part for value in values for part in value]

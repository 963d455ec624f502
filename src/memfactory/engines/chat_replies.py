"""The outcome of a chat completion: a reply, the refusal of this request, or a reason to retry."""

from __future__ import annotations

import json
from typing import Any

from memfactory.engines.endpoint import parsed_json, shown_body
from memfactory.engines.event_stream import without_stream
from memfactory.engines.pool import TryAgain
from memfactory.engines.server_words import server_words, words_of
from memfactory.errors import RequestRefused
from memfactory.redaction import redacted, redacted_message
from memfactory.text import writable
from memfactory.types import Reply, Stop

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FILTERED = {"content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive"}
CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}
TEXT_PARTS = {"text", "output_text"}


def read_reply(body: bytes, where: str, max_tokens: int) -> Reply:
    """The reply in the body of an answer, streamed or whole, free of keys that an endpoint echoes.

    Raises TryAgain for a body without one, RequestRefused for a refusal, a content filter, and a reply that was cut
    before it began. Their rewards are unknown: an empty reply would earn a score.
    """
    choice, message = _choice(body)
    content, finish = _content(message.get("content"), body), str(choice.get("finish_reason") or "").lower()
    refusal = words_of(message.get("refusal")) or words_of(_parts(message.get("content"), "refusal"))
    if finish in FILTERED:
        raise RequestRefused(f"the content filter of {where} cut the reply off ({finish}{_because(refusal)})")
    if content.strip():
        stop: Stop = "length" if finish in CUT else "stop"
        return Reply(redacted(writable(content)), stop)
    if refusal:
        raise RequestRefused(f"{where} declines to answer{_because(refusal)}")
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking")) or bool(
        _parts(message.get("content"), "thinking")
    )
    if finish in CUT:
        spent = "all of them are thinking" if thought else "none is content; perhaps they are hidden thinking"
        raise RequestRefused(
            f"{where} cut the reply off at {max_tokens} tokens: {spent}. Raise the limit of this step (answer_tokens, "
            "memory_tokens, a judge's max_tokens, ...) or turn thinking off at the endpoint"
        )
    content_kind = "thinking and no content" if thought else "a tool call" if message.get("tool_calls") else "no text"
    raise TryAgain(f"the answer has {content_kind}: {shown_body(body)}", final=RequestRefused)


def _choice(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first choice and its message."""
    try:
        value = parsed_json(without_stream(body.removeprefix(BYTE_ORDER_MARK)))
        if isinstance(value, dict) and value.get("error") and not value.get("choices"):
            raise TryAgain(f"the answer is an error: {server_words(json.dumps(value).encode())[0]}")
        choice = value["choices"][0]
        if choice.get("finish_reason") == "error" or choice.get("error"):
            raise TryAgain(f"the answer is an error: {words_of(choice.get('error'))[:300] or shown_body(body)}")
        message = choice.get("message") or {}
        if not isinstance(message, dict) or not ("message" in choice or choice.get("finish_reason")):
            raise TypeError
        if choice.get("text") and not message:
            raise TypeError  # Of an endpoint that completes plain texts.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TryAgain(f"the answer is not a chat completion: {shown_body(body)}") from error
    return choice, message


def _content(content: Any, body: bytes) -> str:
    """Content as text, from a text or from the text parts of a list."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, str | dict) for part in content):
        raise TryAgain(f"the answer has no text: {shown_body(body)}")
    return "".join(
        part if isinstance(part, str) else str(part.get("text") or "")
        for part in content
        if isinstance(part, str) or part.get("type", "text") in TEXT_PARTS
    )


def _parts(content: Any, kind: str) -> list[Any]:
    """The contents of the parts of one kind."""
    if not isinstance(content, list):
        return []
    return [part.get(kind) or part for part in content if isinstance(part, dict) and part.get("type") == kind]


def _because(words: str) -> str:
    return f": {redacted_message(words)[:300]}" if words else ""

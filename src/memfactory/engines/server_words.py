"""A server's words about an error, in any of the shapes in use, and the pause that it requests."""

from __future__ import annotations

import html
import json
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from memfactory.redaction import redacted_message

LONGEST = 500
READ = 20_000
_SAYING = (
    "message",
    "error",
    "errors",
    "detail",
    "details",
    "msg",
    "error_description",
    "error_msg",
    "reason",
    "title",
)


def server_words(body: bytes, status: int = 0) -> tuple[str, str]:
    """The server's own words in the body of an error, free of secrets, and its code for the reason ("": none).

    `{"error": {"message": ...}}`, `{"error": "..."}`, `{"detail": ...}` with text or a list, a list of any of these,
    a page of HTML and plain text are all understood; an empty body gets the usual words for `status`.
    """
    text = body[:READ].decode(errors="replace").lstrip("\ufeff").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    words = words_of(value) or (_page_words(text) if text.startswith("<") else text)
    words = redacted_message(" ".join(words.split()))
    return words[:LONGEST] or _phrase(status), _code(value)


def words_of(value: Any, depth: int = 0) -> str:
    """The words in a parsed error; "" without any."""
    if isinstance(value, str):
        return value.strip()
    if depth > 5:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (words_of(inner, depth + 1) for inner in value[:5])))
    if not isinstance(value, dict):
        return ""
    words = next(filter(None, (words_of(value.get(name), depth + 1) for name in _SAYING)), "")
    place = value.get("loc")  # FastAPI's place of a wrong field.
    return f"{'.'.join(map(str, place))}: {words}" if words and isinstance(place, list) else words


def _code(value: Any) -> str:
    for _ in range(4):
        if isinstance(value, list):
            value = value[0] if value else None
        if not isinstance(value, dict):
            return ""
        code = value.get("code") if isinstance(value.get("code"), str) else value.get("type")
        if not isinstance(value.get("error"), dict | list):
            return code if isinstance(code, str) else ""
        value = value["error"]
    return ""


def _page_words(page: str) -> str:
    title = re.search(r"<title[^>]*>([^<]{1,300})", page, re.IGNORECASE)
    return html.unescape(title.group(1) if title else re.sub(r"<[^>]{0,500}>", " ", page))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no words"


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, as a number or a date; None without a usable value."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return wait if math.isfinite(wait) and wait > 0 else None
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()) or None
    except (KeyError, ValueError, TypeError, OverflowError):
        return None

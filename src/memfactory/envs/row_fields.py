"""Fields that rows of several environments have: gold answers and ids."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated

from pydantic import BeforeValidator

from memfactory.data.base import Row
from memfactory.data.fields import RowModel, Text, TextOrNumber, broken_rule, described, is_number, read, value_at
from memfactory.errors import DataError

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_TEXTS = rf"\s*(?:{QUOTED.pattern})(?:[\s,]+(?:{QUOTED.pattern}))*[\s,]*"
LISTED = re.compile(rf"\[{_TEXTS}\]|\({_TEXTS}\)|\{{{_TEXTS}\}}", re.DOTALL)
"""Quoted texts in brackets, separated by commas or, as numpy prints a list, by spaces."""
WRAPPED = re.compile(
    r"(?:(?:np\.|numpy\.)?array|frozenset|set)\(\s*([\[{].*[\]}])\s*(?:,\s*dtype=[^()\[\]{}]*)?\)", re.DOTALL
)
"""A list as Python prints its type around it: `array([...], dtype=object)`."""


def _gold_answers(value: object) -> list[object]:
    """Gold answers as a list: a text, a number, or a list of these.

    A list of texts that was stored as text, in JSON or as Python or numpy print it, is that list; one that holds
    no gold answers (empty, nested, with nulls) is an error.
    """
    answers: list[object] = []
    for answer in value if isinstance(value, (list, tuple)) else [value]:
        try:
            answers += listed_texts(answer) or [answer]
        except DataError as error:
            raise broken_rule(f"should hold gold answers: it {error}") from None
    if not answers:
        raise broken_rule("should hold at least one gold answer, got an empty list")
    return answers


GoldAnswers = Annotated[tuple[TextOrNumber, ...], BeforeValidator(_gold_answers)]
"""Gold answers: a text, a number, a list of these, or the text of such a list."""


def listed_texts(value: object) -> list[object] | None:
    """The texts of a list that was stored as text: in JSON, or as Python or numpy print it (list, tuple, set, array).

    None for anything else, and for a list of numbers, which may be an answer by itself. A list with texts may hold
    numbers too. Raises DataError, whose message completes "it ...", for a list that cannot be gold answers.
    """
    text = value.strip() if isinstance(value, str) else ""
    wrapped = WRAPPED.fullmatch(text)
    inner = wrapped[1] if wrapped else text
    if LISTED.fullmatch(inner) and (inner[0] != "(" or "," in QUOTED.sub("", inner)):
        items: object = _quoted_texts(inner)
    else:
        items = _collection(inner)
        if items is None and wrapped and QUOTED.search(inner):
            raise DataError(f"is {described(value)}, an array of which not all can be read")
    if not isinstance(items, list) or (items and not _holds_text(items)):
        return None
    if not items:
        raise DataError(f"is {described(value)}, an empty list")
    for item in items:
        if not (isinstance(item, str) and item.strip()) and not is_number(item):
            raise DataError(f"is {described(value)}, a list that holds {described(item)}")
    return items


def _quoted_texts(listed: str) -> list[object]:
    """The quoted texts: numpy prints no commas, and Python would concatenate texts without a comma between them."""
    try:
        items = json.loads(listed)
    except (ValueError, RecursionError):
        items = None
    return items if isinstance(items, list) else [_unquoted(quoted.group()) for quoted in QUOTED.finditer(listed)]


def _collection(text: str) -> list[object] | None:
    """The elements of a list, tuple or set that JSON or Python prints as `text`; None for anything else."""
    if text == "set()":
        return []
    if text[:1] + text[-1:] not in ("[]", "()", "{}"):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        try:
            items = _literal(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
    if isinstance(items, (set, frozenset)):
        return sorted(items, key=repr)
    return list(items) if isinstance(items, (list, tuple)) else None


def _literal(text: str) -> object:
    """The value of the Python literal `text`, as `ast.literal_eval` reads it."""
    with warnings.catch_warnings():
        # A text with a backslash, such as LaTeX, is a row's own business and no warning for the user.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.literal_eval(text)


def _holds_text(value: object) -> bool:
    """Whether nested lists hold a text, or null in place of one."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_text, value))
    return value is None or isinstance(value, str)


def _unquoted(quoted: str) -> str | None:
    """The text whose Python literal is `quoted`; None if it is not a literal."""
    try:
        return str(_literal(quoted))
    except (ValueError, SyntaxError):
        return None


class _Id(RowModel):
    id: Text


def id_of(row: Row, names: Sequence[str], question: str) -> str:
    """The row's own id, else a hash of its question, which is the same in every length of a set."""
    for name in names:
        value = value_at(row.values, name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if (isinstance(value, str) and value.strip()) or is_number(value):
            return read(_Id, {"id": str(value)}, row.source, names={"id": name}).id
    return blake2b(question.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

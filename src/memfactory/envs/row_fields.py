"""Fields of a row as values of a task: found under any of their names, checked, and told where they are wrong."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from memfactory.data.base import Row
from memfactory.data.rows import described, is_number
from memfactory.errors import DataError

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_TEXTS = rf"\s*(?:{QUOTED.pattern})(?:[\s,]+(?:{QUOTED.pattern}))*[\s,]*"
LISTED = re.compile(rf"\[{_TEXTS}\]|\({_TEXTS}\)|\{{{_TEXTS}\}}", re.DOTALL)
"""Quoted texts in brackets, with commas between them or, as numpy prints a list, without."""
WRAPPED = re.compile(
    r"(?:(?:np\.|numpy\.)?array|frozenset|set)\(\s*([\[{].*[\]}])\s*(?:,\s*dtype=[^()\[\]{}]*)?\)", re.DOTALL
)
"""What Python prints around a list: `array([...], dtype=object)`."""


def value_at(values: Mapping[str, object], field: str) -> object:
    """The value of `field`, None where it is not there."""
    if field in values:
        return values[field]
    outer, dot, inner = field.partition(".")
    nested = values.get(outer)
    return value_at(nested, inner) if dot and isinstance(nested, Mapping) else None


def find_field(row: Row, own: str | None, published: tuple[str, ...], what: str) -> tuple[str, object]:
    """The first field of the row that is there, with its value."""
    wanted = (own,) if own is not None else published
    for field in wanted:
        value = value_at(row.values, field)
        if value is not None:
            return field, value
    fields = ", ".join(map(str, row.values)) or "no fields"
    null = [field for field in wanted if field in row.values]
    raise DataError(
        f"{row.source} has no {what}: "
        + (f"field {null[0]!r} is null" if null else f"expected {' or '.join(map(repr, wanted))}; it has {fields}")
    )


def text_of(row: Row, field: str, value: object, *, blank: bool = False) -> str:
    """`value`, which must be a text that can be written, and not blank unless it may be. Raises DataError otherwise."""
    if not isinstance(value, str) or not (blank or value.strip()):
        raise DataError(f"{row.source}: field {field!r} should be a text, got {described(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.source}: field {field!r} should be a text, but character {error.start} is half of a surrogate pair"
        ) from None
    return value


def answers_of(row: Row, field: str, value: object) -> tuple[str, ...]:
    """The gold answers that `value` is: a text, a number, or a list of these.

    A list of texts that was stored as text, in JSON or as Python or numpy print it, is that list; one that holds
    no gold answers (empty, nested, with nulls) is an error.
    """
    held = list(value) if isinstance(value, (list, tuple)) else [value]
    given: list[object] = []
    for answer in held:
        try:
            given += listed_texts(answer) or [answer]
        except DataError as error:
            raise DataError(f"{row.source}: field {field!r} should hold gold answers: it {error}") from None
    if not given:
        raise DataError(f"{row.source}: field {field!r} should hold at least one gold answer, got an empty list")
    answers = []
    for number, answer in enumerate(given):
        place = f"{field}[{number}]" if isinstance(value, (list, tuple)) else field
        if is_number(answer):
            answer = str(answer)
        answers.append(text_of(row, place, answer))
    return tuple(answers)


def listed_texts(value: object) -> list[object] | None:
    """The texts of a list that `value` is the text of: JSON, or what Python or numpy print (a list, tuple, set, array).

    None for anything else, and for a list of numbers: it may be an answer by itself. A list with texts may hold
    numbers too. Raises DataError for a list that cannot be gold answers, with what is wrong about it.
    """
    text = value.strip() if isinstance(value, str) else ""
    wrapped = WRAPPED.fullmatch(text)
    inner = wrapped[1] if wrapped else text
    if LISTED.fullmatch(inner) and (inner[0] != "(" or "," in QUOTED.sub("", inner)):
        found: object = _quoted_texts(inner)
    else:
        found = _collection(inner)
        if found is None and wrapped and QUOTED.search(inner):
            raise DataError(f"is {described(value)}, an array of which not all can be read")
    if not isinstance(found, list) or (found and not _holds_text(found)):
        return None
    if not found:
        raise DataError(f"is {described(value)}, an empty list")
    for one in found:
        if not (isinstance(one, str) and one.strip()) and not is_number(one):
            raise DataError(f"is {described(value)}, a list that holds {described(one)}")
    return found


def _quoted_texts(listed: str) -> list[object]:
    """The texts between the quotes: numpy prints no commas, and Python would join what has none between it."""
    try:
        found = json.loads(listed)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, list) else [_unquoted(quoted.group()) for quoted in QUOTED.finditer(listed)]


def _collection(text: str) -> list[object] | None:
    """The members of a list, tuple or set that JSON or Python prints as `text`; None for anything else."""
    if text == "set()":
        return []
    if text[:1] + text[-1:] not in ("[]", "()", "{}"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
    if isinstance(found, (set, frozenset)):
        return sorted(found, key=repr)
    return list(found) if isinstance(found, (list, tuple)) else None


def _holds_text(value: object) -> bool:
    """Whether there is a text, or nothing at all in place of one, in nested lists."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_text, value))
    return value is None or isinstance(value, str)


def _unquoted(quoted: str) -> str | None:
    """The text that Python prints as `quoted`."""
    try:
        return str(ast.literal_eval(quoted))
    except (ValueError, SyntaxError):
        return None


def id_of(row: Row, fields: Sequence[str], question: str) -> str:
    """The row's own name, else one made from its question, so that it is the same in every length of a set."""
    for field in fields:
        value = value_at(row.values, field)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if (isinstance(value, str) and value.strip()) or is_number(value):
            return text_of(row, field, str(value))
    return blake2b(question.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

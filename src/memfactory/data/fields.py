"""Fields of rows: pydantic types for them, and validation errors as sentences that name source, field and value.

class Question(AliasedModel):
    question: Text = Field(validation_alias=AliasChoices("query", "question"))

read(Question, {"query": 3}, "rows.json row 5")
# DataError: rows.json row 5: field 'query' should be a text, got the number 3
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeGuard, TypeVar

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from memfactory.errors import DataError

ModelT = TypeVar("ModelT", bound="RowModel")

# A character that Python's `str.strip` keeps.
_NOT_BLANK = r"[^\s\x1c-\x1f]"
_EXPECTED = {
    "string_type": "a text",
    "string_pattern_mismatch": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "an object with fields",
    "dict_type": "an object with fields",
    "int_type": "a whole number",
}


class RowModel(BaseModel):
    """Some fields of a row, or of an object in it; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class AliasedModel(RowModel):
    """Fields with several names, of which the first that is not null counts: a null field counts as missing."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value is not None} if type(values) is dict else values


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a finite number; true and false are not numbers."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _number_as_text(value: object) -> object:
    return str(value) if is_number(value) else value


AnyText = Annotated[str, Field(strict=True, min_length=0)]
"""A text, which may be blank. (A length makes pydantic refuse halves of surrogate pairs.)"""
Text = Annotated[str, Field(strict=True, pattern=_NOT_BLANK)]
"""A text that is not blank."""
TextOrNumber = Annotated[Text, BeforeValidator(_number_as_text)]
"""A text that is not blank, or a number, which becomes text."""
AnyTextOrNumber = Annotated[AnyText, BeforeValidator(_number_as_text)]
"""A text, which may be blank, or a number, which becomes text."""


def expected(words: str) -> PydanticCustomError:
    """The error of a validator whose field "should be `words`, got ..."."""
    return PydanticCustomError("row_type", "{words}", {"words": words})


def broken_rule(clause: str) -> PydanticCustomError:
    """The error of a validator, as the clause behind the field's name: "should hold each id once"."""
    return PydanticCustomError("row_rule", "{clause}", {"clause": clause})


def read(
    model: type[ModelT], values: object, place: str, *, at: str = "", names: Mapping[str, str] | None = None
) -> ModelT:
    """`values` as a `model`.

    Raises DataError that names `place` (the row's source), the field, its value and the expected form. `at` is the
    path of `values` inside the row; `names` maps fields of the model to the names that the row has for them.
    """
    try:
        return model.model_validate(dict(values) if isinstance(values, Mapping) else values)
    except ValidationError as error:
        raise DataError(_sentence(error, model, values, place, at, names or {})) from None


def read_list(model: type[ModelT], values: object, place: str, *, at: str) -> list[ModelT]:
    """`values`, a list, as `model`s; otherwise as `read`."""
    try:
        return _list_of(model).validate_python(values)
    except ValidationError as error:
        raise DataError(_sentence(error, model, values, place, at, {})) from None


@cache
def _list_of(model: type[ModelT]) -> TypeAdapter[list[ModelT]]:
    return TypeAdapter(list[model])  # type: ignore[valid-type]


def value_at(values: Mapping[str, object], name: str) -> object:
    """The value of a field, None if it is missing; `a.b` is the field b of the object a."""
    if name in values:
        return values[name]
    outer, dot, inner = name.partition(".")
    nested = values.get(outer)
    return value_at(nested, inner) if dot and isinstance(nested, Mapping) else None


def first_name(values: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The first of `names` whose field is not null; None if there is none."""
    return next((name for name in names if value_at(values, name) is not None), None)


def missing(place: str, title: str, names: Sequence[str], values: Mapping[str, object]) -> DataError:
    """The error of an object at `place` that lacks the field `title`, under all of its `names`."""
    null = next((name for name in names if name in values), None)
    fields = ", ".join(map(str, values)) or "no fields"
    if null is not None:
        return DataError(f"{place} has no {title}: field {null!r} is null")
    if tuple(names) == (title,):
        return DataError(f"{place} has no field {title!r}; it has {fields}")
    return DataError(f"{place} has no {title}: expected {' or '.join(map(repr, names))}; it has {fields}")


def described(value: Any) -> str:
    """A value of a row in a few words, for messages: "a list of 3", "the number 5"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}{'...' if len(value) > 40 else ''}" if value.strip() else "an empty text"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, list(value)[:8]))}" if value else "an empty object"
    return f"a value of type {type(value).__name__}"


def _sentence(
    error: ValidationError, model: type[RowModel], values: object, place: str, at: str, names: Mapping[str, str]
) -> str:
    """The first error as a sentence."""
    details = error.errors(include_url=False)[0]
    path, owner = _path_in(values, details)
    name = str(details["loc"][-1]) if details["loc"] else ""
    if details["type"] == "missing":
        title, choices = _names_of(model, name)
        outer = _joined(at, path[:-1])
        return str(missing(_subject(place, outer), title, choices, owner))
    field = _joined(at, [names.get(str(part), part) for part in path[:1]] + path[1:])
    clause = _clause(details, model, name)
    if details["type"] == "row_rule" and not field:  # A rule of the whole object names its fields itself.
        return f"{place}: {clause}" if place else clause
    return f"{_subject(place, field)} {clause}"


def _subject(place: str, field: str) -> str:
    """The subject of a sentence: the field of the row at `place`, or the row itself."""
    if not field:
        return place or "the row"
    return f"{place}: field {field!r}" if place else f"field {field!r}"


def _clause(details: ErrorDetails, model: type[RowModel], name: str) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "row_rule":
        return str(context["clause"])
    if kind == "string_unicode":
        return f"should be a text, but character {_surrogate(str(value))} is half of a surrogate pair"
    description = model.model_fields[name].description if name in model.model_fields else None
    if kind == "row_type":
        words = str(context["words"])
    elif kind == "literal_error":
        words = "one of " + str(context["expected"]).replace("'", "").replace(" or ", ", ")
    else:
        words = description or _EXPECTED.get(kind) or details["msg"].removeprefix("Input should be ")
    return f"should be {words}, got {described(value)}"


def _path_in(values: object, details: ErrorDetails) -> tuple[list[str | int], Mapping[str, object]]:
    """The error's location without parts that `values` does not have, and the innermost object on the way to it.

    A validator that makes a list of a single value adds an index to the location, which the row knows nothing of.
    """
    path: list[str | int] = []
    here: Any = values
    owner: Mapping[str, object] = values if isinstance(values, Mapping) else {}
    for part in details["loc"]:
        if isinstance(part, int) and not isinstance(here, (list, tuple)):
            continue
        path.append(part)
        if isinstance(part, int):
            here = here[part] if part < len(here) else None
        else:
            here = here.get(part) if isinstance(here, Mapping) else None
        owner = here if isinstance(here, Mapping) else owner
    return path, owner


def _joined(at: str, path: Sequence[str | int]) -> str:
    """A path as it is written: conversation[3].text."""
    for part in path:
        at = f"{at}[{part}]" if isinstance(part, int) else f"{at}.{part}" if at else part
    return at


def _names_of(model: type[RowModel], first: str) -> tuple[str, tuple[str, ...]]:
    """The title in messages of the field whose first name is `first`, and all of its names."""
    for name, info in model.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name]
        names = tuple(
            ".".join(map(str, choice.path)) if isinstance(choice, AliasPath) else choice for choice in choices
        )
        if first in (name, names[0]):
            return info.title or name, names
    return first, (first,)


def _surrogate(text: str) -> int:
    """The place of the first character that UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return 0

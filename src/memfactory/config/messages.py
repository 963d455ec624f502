"""Pydantic's errors as sentences: the expected value, the given one, the keys that exist and the nearest of them."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from memfactory.components import PROMPTS, ModuleOptions
from memfactory.config.problems import shown
from memfactory.config.tree import KeyPath, dotted
from memfactory.errors import nearest

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "decimal": "a number",
    "number": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "dataclass": "a mapping",
    "none_required": "null",
}
_RANGES = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_OF_TYPE = ("model_type", "dict_type", "extra_forbidden")
"""Errors of a value that is neither a mapping nor a name."""
_CHARACTERS = re.compile(r"\^\[0-9a-zA-Z((?:\\.|[^\]\\-])+)\]\+\$")


def sentences(error: ValidationError, model: object, data: object) -> Iterator[tuple[KeyPath, str]]:
    """(path inside `data`, message) for each place that is wrong; `model` is the type that `data` failed."""
    places: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        places.setdefault(_path_in(data, details), []).append(details)
    for path, errors in places.items():
        if any(path != other and other[: len(path)] == path for other in places):
            continue  # One type of a union fits down to a deeper key; its error is the useful one.
        yield path, _sentence(path, errors, model)


def holds(here: object, part: str | int) -> bool:
    """Whether `part` is a key of the mapping, or a position of the list, `here`."""
    return part in here if isinstance(here, dict) else isinstance(here, list) and part in range(len(here))


def _path_in(data: Any, details: ErrorDetails) -> KeyPath:
    """The error's location without the names of union types, which are not keys of the data."""
    path: list[str | int] = []
    here = data
    for position, part in enumerate(details["loc"]):
        if holds(here, part):
            here = here[part]
        elif position < len(details["loc"]) - 1 or details["type"] != "missing":
            continue
        path.append(part)
    return tuple(path)


def _sentence(path: KeyPath, errors: list[ErrorDetails], model: object) -> str:
    first = errors[0]
    if first["type"] == "missing":
        return "is missing"
    if path == (PROMPTS,) and first["type"] in _OF_TYPE and _has_presets(model):
        or_texts = " or a mapping of its texts" if PROMPTS in model.model_fields else ""
        names = ", ".join(model.preset_names())
        return f"expected the name of a preset of prompts ({names}){or_texts}; given {shown(first['input'])}"
    if first["type"] == "extra_forbidden":
        return unknown_key(str(path[-1]), fields_at(model, path[:-1]), model if isinstance(model, type) else None)
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_not_found":
        return f"needs `kind`, one of {', '.join(map(repr, kinds_at(model, path)))}"
    if first["type"] == "union_tag_invalid":
        tag = str(first["ctx"]["tag"])
        near = nearest(tag, [choice.strip("' ") for choice in _choices(first).split(",")])
        hint = f"; did you mean {near!r}?" if near else "."
        return f"there is no kind {tag!r}{hint} There are: {_choices(first)}"
    expected = " or ".join(dict.fromkeys(_expected(details) for details in errors))
    value = first["input"]
    message = f"expected {expected}; given {shown(value)}"
    literals = [choice for details in errors for choice in _literals(details)]
    near = nearest(value, literals) if isinstance(value, str) else None
    return f"{message}; did you mean {near!r}?" if near else message


def _has_presets(model: object) -> TypeGuard[type[ModuleOptions]]:
    return isinstance(model, type) and issubclass(model, ModuleOptions) and bool(model.presets)


def _expected(details: ErrorDetails) -> str:
    kind = details["type"]
    if kind in _RANGES:
        key, words = _RANGES[kind]
        return f"{words} {details['ctx'][key]:g}"
    if kind == "literal_error":
        return f"one of {details['ctx']['expected']}"
    if kind == "string_pattern_mismatch":
        return _of_characters(str(details["ctx"]["pattern"]))
    if kind in ("string_too_long", "string_too_short"):
        most = kind == "string_too_long"
        number = details["ctx"]["max_length" if most else "min_length"]
        return f"text of at {'most' if most else 'least'} {number} character{'s' if number != 1 else ''}"
    return (
        _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0]) or details["msg"].removeprefix("Input should be ")
    )


def _of_characters(pattern: str) -> str:
    """A description of `pattern`: the characters that it lists beside letters and digits, or else the pattern."""
    listed = _CHARACTERS.fullmatch(pattern)
    if listed is None:
        return f"text that matches {pattern}"
    return f"text of letters, digits and {' '.join(listed[1].replace(chr(92), ''))} only"


def _choices(details: ErrorDetails) -> str:
    return str(details["ctx"]["expected_tags"])


def _literals(details: ErrorDetails) -> list[str]:
    if details["type"] != "literal_error":
        return []
    return [choice.strip("' ") for choice in details["ctx"]["expected"].replace(" or ", ",").split(",")]


def unknown_key(
    key: str, existing: list[str], model: type | None = None, places: Callable[[str], list[str]] | None = None
) -> str:
    """The message for a key that does not exist: the nearest key, or a place (in `model`, or from `places`) that has a
    key of this name."""
    near = nearest(key, existing)
    elsewhere = [dotted(path) for path in places_of(key, model)] if model is not None and near is None else []
    elsewhere = elsewhere or (places(key) if places is not None and near is None else [])
    hint = f"; did you mean {near!r}?" if near else f"; there is {elsewhere[0]!r}." if elsewhere else "."
    return f"unknown key{hint} There are: {', '.join(sorted(existing)) or '(none)'}"


def places_of(name: str, annotation: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The places of a key called `name` in nested options."""
    for model in models_in(annotation):
        for key, info in model.model_fields.items():
            if key == name and path:
                yield (*path, key)
            yield from places_of(name, info.annotation, (*path, key))


def fields_at(annotation: object, path: KeyPath) -> list[str]:
    """The keys that exist at `path` inside options of type `annotation`."""
    return sorted({key for model in _options_at(annotation, path) for key in model.model_fields})


def kinds_at(annotation: object, path: KeyPath) -> list[str]:
    """The kinds that can be chosen at `path` inside options of type `annotation`."""
    fields = [model.model_fields["kind"] for model in _options_at(annotation, path) if "kind" in model.model_fields]
    return [str(kind) for field in fields for kind in get_args(field.annotation)]


def _options_at(annotation: object, path: KeyPath) -> list[type[BaseModel]]:
    """The options models that can stand at `path` inside options of type `annotation`."""
    here: list[object] = [annotation]
    for part in path:
        following: list[object] = []
        for step in here:
            for inner in _types_of(step):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    if part in inner.model_fields:
                        following.append(inner.model_fields[str(part)].annotation)
                elif get_origin(inner) in (dict, tuple, list):
                    following.extend(argument for argument in get_args(inner) if argument not in (str, ...))
        here = following
    return [model for step in here for model in models_in(step)]


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The options models that a field of type `annotation` can hold directly."""
    for kind in _types_of(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _types_of(annotation: object) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _types_of(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _types_of(argument)
    elif origin is not Literal:
        yield annotation

"""A memory item out of a row: the published schema's fields and ours, checked."""

from __future__ import annotations

from collections.abc import Mapping

from memfactory.errors import DataError
from memfactory.types import MemoryItem

NOBODY = "default_user"
"""What the published schema calls the user of a memory that is nobody's in particular."""


def item_from(values: Mapping[str, object], where: str) -> MemoryItem:
    """The item that `values` describe; `where` names them in messages. Fields of neither schema are left out.

    Raises DataError that says which field, what was given and what was expected.
    """
    value = _text(values, ("value",), where)
    if not value.strip():
        raise DataError(f"{where}: field 'value' should be a text, got an empty text")
    namespace = _text(values, ("namespace", "user_id"), where, "")
    return MemoryItem(
        id=_id(values, where),
        key=_text(values, ("key",), where, ""),
        value=value,
        kind=_text(values, ("memory_type", "kind"), where, "fact"),
        tags=_texts(values, "tags", where),
        sources=_texts(values, "sources", where),
        created_at=_text(values, ("created_at",), where, "") or None,
        updated_at=_text(values, ("updated_at",), where, "") or None,
        version=_version(values, where),
        namespace="" if namespace == NOBODY else namespace,
    )


def _id(values: Mapping[str, object], where: str) -> str:
    given = values.get("id")
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    found = _text(values, ("id",), where)
    if not found.strip():
        raise DataError(f"{where}: field 'id' should be a text or a whole number, got an empty text")
    return found


def _text(values: Mapping[str, object], fields: tuple[str, ...], where: str, default: str | None = None) -> str:
    """The first of `fields` that is not null, as a text."""
    field = next((field for field in fields if values.get(field) is not None), None)
    if field is None:
        if default is not None:
            return default
        raise DataError(f"{where} has no {fields[0]!r}; it has {', '.join(map(str, values)) or 'no fields'}")
    return _whole(values[field], field, where)


def _texts(values: Mapping[str, object], field: str, where: str) -> tuple[str, ...]:
    given = values.get(field)
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)):
        raise DataError(f"{where}: field {field!r} should be a list of texts, got {given!r:.60}")
    return tuple(_whole(text, f"{field}[{number}]", where) for number, text in enumerate(given))


def _whole(given: object, field: str, where: str) -> str:
    if not isinstance(given, str):
        raise DataError(f"{where}: field {field!r} should be a text, got {given!r:.60}")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {field!r} should be a text, but character {error.start} is half of a surrogate pair"
        ) from None
    return given


def _version(values: Mapping[str, object], where: str) -> int:
    given = values.get("version")
    if given is None:
        return 1
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise DataError(f"{where}: field 'version' should be a whole number from 1, got {given!r:.60}")
    return given

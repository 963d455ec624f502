"""Where a config holds a secret, by the names of its keys and by its values: it is saved beside its results.

A secret stands in an environment variable that the config names (`api_key_env`), so a run that is resumed or evaluated
from its written config finds it there again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from memfactory.config.tree import KeyPath
from memfactory.redaction import (
    REDACTED,
    SHORTEST,
    environment_value,
    is_secret,
    is_secret_variable,
    keep_secret,
    looks_secret,
    names_a_variable,
)

INSTEAD = "a config is saved beside its results, so it holds no secrets; name an environment variable (api_key_env)"
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*[\"']?([A-Za-z_][A-Za-z0-9_]*)")
# A secret's name and its value in one text: `X-Api-Key: value`, `--token=value`.
_PAIR = re.compile(r"\s*(?:-{1,2}(?P<option>[A-Za-z][\w.-]*)[\s=]|(?P<name>[A-Za-z][\w.-]*)\s*[:=])\s*\S+\s*")
_ADDRESS = re.compile(r"://[^/\s]*@|[?&][\w-]+=")
_NAMED = {("engines",), ("data", "eval"), ("env", "rewards"), ("agent", "modules")}
"""Sections whose keys are names that users choose."""

Places = Iterator[tuple[KeyPath, str]]


def written_secrets(values: object) -> Places:
    """Every place of a config as it was written that holds a secret: (path, remedy)."""
    yield from _in(values, ())


def resolved_secrets(values: object) -> Places:
    """The same for a config whose `${...}` are filled in: secrets by their value alone."""
    for name in _key_variables(values):
        keep_secret(environment_value(name))
    known = {v for n, v in os.environ.items() if is_secret_variable(n) and len(v) >= SHORTEST and not _is_place(v)}
    for path, text in _texts(values, ()):
        if looks_secret(text) or any(value in text for value in known):
            yield path, _because(text)


def _in(value: object, path: KeyPath) -> Places:
    if isinstance(value, dict):
        for key, inner in value.items():
            here = (*path, key)
            if isinstance(key, str) and key.endswith("_env") and is_secret(key.removesuffix("_env")):
                yield from _variable(inner, here)
            elif is_secret(key) and not isinstance(inner, bool | None) and path not in _NAMED:
                if _is_mapping_of_names(inner):
                    yield from _in(inner, here)
                else:
                    yield here, INSTEAD
            else:
                yield from _in(inner, here)
        name = next((value.get(key) for key in ("name", "key", "header") if isinstance(value.get(key), str)), None)
        if is_secret(name) and isinstance(value.get("value"), str):
            yield (*path, "value"), INSTEAD
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            before = value[index - 1] if index else None
            option = isinstance(before, str) and before.startswith("--") and is_secret(before.lstrip("-"))
            if option and isinstance(inner, str):
                yield (*path, index), INSTEAD
            else:
                yield from _in(inner, (*path, index))
    elif isinstance(value, str):
        yield from _text(value, path)


def _text(value: str, path: KeyPath) -> Places:
    pair = _PAIR.fullmatch(value)
    if REDACTED in value:
        yield path, f"{REDACTED} stands where a secret was when this config was written; write an environment variable"
    elif looks_secret(value):
        yield path, _because(value)
    elif any(map(is_secret_variable, _ENVIRONMENT.findall(value))) or (
        pair and is_secret(pair["option"] or pair["name"])
    ):
        yield path, INSTEAD


def _variable(value: object, path: KeyPath) -> Places:
    """A problem with a value that should name an environment variable and may be the key itself."""
    if isinstance(value, str) and value and not names_a_variable(value):
        yield (
            path,
            "expected the name of an environment variable, such as MY_API_KEY; the value is not one, and is not shown, "
            "since it may be the key itself",
        )


def _is_mapping_of_names(value: object) -> bool:
    """Whether `value` only groups keys with names of their own: `auth: {password: ...}`, where the inner name
    decides."""
    if not isinstance(value, dict):
        return False
    return all(
        not isinstance(inner, str) or is_secret(key) or str(key).endswith("_env") for key, inner in value.items()
    )


def _texts(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))


def _key_variables(value: object) -> Iterator[str]:
    """Every environment variable that the config names for a key."""
    for path, text in _texts(value, ()):
        if str(path[-1] if path else "").endswith("_env"):
            yield text


def _is_place(value: str) -> bool:
    """Whether the value of a variable is a path, as that of SSH_AUTH is."""
    return value.startswith(("/", "~", "."))


def _because(text: str) -> str:
    return f"this address holds a password or token; {INSTEAD}" if _ADDRESS.search(text) else INSTEAD

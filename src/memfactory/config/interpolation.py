"""OmegaConf's `${...}`: environment variables and references to other keys, resolved value by value."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from memfactory.config.problems import Problems
from memfactory.config.tree import KeyPath, leaves
from memfactory.redaction import redacted_message

_MISSING = "???"
_MOST_REFERENCES = 2_000
_MOST_CHARACTERS = 1_000_000
_RESOLVER = re.compile(r"\$\{\s*([^{}$]*?)\s*:")
_REFERENCE = re.compile(r"\$\{\s*(\.*)([^{}:$]*)\}")
_NESTED_NAME = re.compile(r"\$\{[^{}:]*\$\{")
_OPENING = re.compile(r"(\\*)\$\{")


def resolve(values: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """`values` with every interpolation filled in; a value that cannot be resolved is reported to `problems` and
    becomes None.

    Raises ConfigError with all problems for references that multiply without bound.
    """
    readable = _without_unreadable(values, (), problems)
    _refuse_endless(readable, problems)
    config = OmegaConf.create(readable)
    return {key: _resolved(config, readable, (key,), value, problems) for key, value in readable.items()}


def _without_unreadable(value: Any, path: KeyPath, problems: Problems) -> Any:
    """A copy in which texts whose `${` cannot even be parsed, and values marked as missing, are None."""
    if isinstance(value, dict):
        return {key: _without_unreadable(inner, (*path, key), problems) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_unreadable(inner, (*path, index), problems) for index, inner in enumerate(value)]
    if value == _MISSING:
        problems.add(path, "must be given: it is marked as missing (???)")
        return None
    if isinstance(value, str) and "${" in value:
        refused = _refused(value)
        if refused is not None:
            problems.add(path, refused)
            return None
        try:
            OmegaConf.create({"value": value})
        except GrammarParseError as error:
            problems.add(path, f"cannot read the ${{...}} in it ({_first_line(error)}); a literal ${{ is written \\${{")
            return None
    return value


def _refused(text: str) -> str | None:
    """The reason why an interpolation in `text` is not allowed; None if all are."""
    # The text around a literal ${ must not join into another.
    unescaped = re.sub(r"\\\\|\\\$\{", " ", text)
    if _NESTED_NAME.search(unescaped):
        return "a ${...} inside the name of another is not supported; write the key out"
    other = next((name for name in _RESOLVER.findall(unescaped) if name != "oc.env"), None)
    if other is not None:
        return (
            f"${{{other}:...}} is not supported; ${{...}} refers to another key or, as ${{oc.env:NAME}}, to an "
            "environment variable. A literal ${ is written \\${"
        )
    return None


def _refuse_endless(values: dict[str, Any], problems: Problems) -> None:
    """Raise ConfigError if the references of `values` lead to more than a config can need, such as a chain in which
    each doubles the one before. Resolving them would never end."""
    sizes: dict[KeyPath, tuple[int, int]] = {}
    total = 0
    for path, text in leaves(values):
        if isinstance(text, str) and "${" in text:
            count, characters = _expansion(values, path, sizes, ())
            total += count
            if total > _MOST_REFERENCES or characters > _MOST_CHARACTERS:
                problems.add(path, "its ${...} lead to too many other values, directly and through each other")
                problems.raise_any()


def _expansion(
    values: dict[str, Any], path: KeyPath, sizes: dict[KeyPath, tuple[int, int]], inside: tuple[KeyPath, ...]
) -> tuple[int, int]:
    """The number of references that the value at `path` leads to, and its length in characters."""
    if path in sizes:
        return sizes[path]
    if path in inside or len(inside) > 200:
        return 0, 0
    exists, value = _at(values, path)
    count = characters = 0
    for below, leaf in leaves(value, path) if exists else ():
        if not isinstance(leaf, str):
            continue
        characters += len(leaf)
        for dots, name in _REFERENCE.findall(leaf):
            parts = tuple(part for part in re.split(r"[.\[\]]", name.strip()) if part)
            target = (*below[: len(below) - len(dots)], *parts) if dots else parts
            more, longer = _expansion(values, target, sizes, (*inside, path))
            count, characters = count + 1 + more, characters + longer
    sizes[path] = count, characters
    return count, characters


def _at(values: Any, path: KeyPath) -> tuple[bool, Any]:
    """Whether `path` exists, and its value."""
    for part in path:
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and str(part).isdecimal() and int(part) < len(values):
            values = values[int(part)]
        else:
            return False, None
    return True, values


def _resolved(config: Any, values: Any, path: KeyPath, value: Any, problems: Problems) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(config, values, (*path, key), inner, problems) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(config, values, (*path, index), inner, problems) for index, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        here = config
        for part in path:
            here = here[part]
        return OmegaConf.to_container(here, resolve=True) if OmegaConf.is_config(here) else here
    except (OmegaConfBaseException, RecursionError) as error:
        problems.add(path, _why(error, value))
        return None


def _why(error: Exception, value: str) -> str:
    text = _first_line(error)
    variable = re.search(r"Environment variable '(.+?)' not found", text)
    if variable:
        name = variable.group(1)
        return f"the environment variable {name} is not set; a default is written ${{oc.env:{name},default}}"
    key = re.search(r"Interpolation key '(.+?)' not found", text)
    if key:
        return f"${{{key.group(1)}}} refers to a key that is not there; a literal ${{ is written \\${{"
    return f"cannot resolve {redacted_message(repr(value))} ({redacted_message(text)}); a literal ${{ is written \\${{"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def escape(value: Any) -> Any:
    """`value` with every literal `${` written so that `resolve` gives it back."""
    if isinstance(value, dict):
        return {key: escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escape(inner) for inner in value]
    return _OPENING.sub(r"\1\1\\${", value) if isinstance(value, str) else value

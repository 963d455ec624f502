"""OmegaConf's `${...}`: environment variables and references to other keys, resolved value by value."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from memfactory.config.problems import Problems
from memfactory.config.tree import KeyPath
from memfactory.redaction import redacted_message

_MISSING = "???"
_OPENING = re.compile(r"(\\*)\$\{")


def resolve(values: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """`values` with every interpolation filled in; what cannot be is noted in `problems` and becomes None."""
    readable = _without_unreadable(values, (), problems)
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
        try:
            OmegaConf.create({"value": value})
        except GrammarParseError as error:
            problems.add(path, f"cannot read the ${{...}} in it ({_first_line(error)}); a literal ${{ is written \\${{")
            return None
    return value


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

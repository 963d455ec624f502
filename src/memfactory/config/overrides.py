"""`key=value` overrides from the command line, applied to a composed config one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.config.parts import PART_FOLDERS, expand
from memfactory.config.problems import shown
from memfactory.config.tree import KeyPath, Origin, Tree, dotted, moved, parse_scalar
from memfactory.errors import ConfigError
from memfactory.redaction import is_secret, redacted_message

COMMAND_LINE = 1_000_000
"""The layer of overrides: above every file."""
# A short form that has to be written out before a key below it can be set: `model: tiny` is `model: {path: tiny}`.
_SHORT_FORMS = {"model": "path", "engine": "kind", "engines": "kind", "trackers": "kind"}


@dataclass(frozen=True)
class Override:
    """One `key=value` of the command line."""

    text: str
    path: tuple[str, ...]
    value: Any

    @property
    def origin(self) -> Origin:
        if is_secret(self.path[-1]):
            return Origin(f"command line: {dotted(self.path)}=***", layer=COMMAND_LINE)
        if isinstance(self.value, dict | list):
            return Origin(f"command line: {dotted(self.path)}={shown(self.value)}", layer=COMMAND_LINE)
        return Origin(f"command line: {redacted_message(self.text)}", layer=COMMAND_LINE)


def parse_override(text: str) -> Override:
    """`a.b=value` or `--a.b=value`; `a[0].b` counts as `a.0.b`. Raises ConfigError for anything else."""
    key, equals, value = text.partition("=")
    name = re.sub(r"\[(\d+)\]", r".\1", key.strip().removeprefix("--"))
    if not equals:
        hint = f"write {name}=value" if name else "write key=value"
        raise ConfigError(f"command line: {text}: an override needs '='; {hint}")
    path = tuple(name.split("."))
    if not all(path) or any(part != part.strip() for part in path):
        raise ConfigError(f"command line: {text}: {key!r} is no key; write section.key=value")
    if not value.strip():
        raise ConfigError(
            f"command line: {text}: no value is given; write {name}=null to unset it, {name}='\"\"' for no text"
        )
    try:
        parsed = parse_scalar(value)
    except ValueError as error:
        raise ConfigError(f"command line: {text}: {error}") from None
    glued = next((key for key, inner in _pairs(parsed) if inner is None and ":" in key), None)
    if glued is not None:
        raise ConfigError(
            f"command line: {text}: YAML wants a space after a colon: {{{glued.replace(':', ': ', 1)}}}; quote the "
            "value for the shell"
        )
    return Override(text, path, parsed)


def _pairs(value: object) -> Iterator[tuple[str, object]]:
    """Every key of nested mappings with its value."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner
        yield from _pairs(inner)


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """Every override; ConfigError with all that cannot be read."""
    parsed: list[Override] = []
    problems: list[str] = []
    for text in texts:
        try:
            parsed.append(parse_override(text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return parsed


def apply_overrides(tree: Tree, overrides: Sequence[Override], folders: list[Path]) -> None:
    """Set each override in `tree`, in place. Whole parts (`agent=...`) come first, so that keys below them count.

    Raises ConfigError with every override whose key leads through something that is no mapping.
    """
    problems: list[str] = []
    whole = [override for override in overrides if len(override.path) == 1]
    for override in [*whole, *(override for override in overrides if len(override.path) > 1)]:
        try:
            _apply(tree, override, folders)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _apply(tree: Tree, override: Override, folders: list[Path]) -> None:
    section, origin = override.path[0], override.origin
    value: Any = override.value
    origins: dict[KeyPath, Origin] = {override.path: origin}
    if override.path == (section,) and section in PART_FOLDERS:
        part = expand(section, value, {(section,): origin}, folders)
        value, origins = part.values, {**moved(part.origins, (), (section,)), (section,): origin}
    path = _set(tree, override, value)
    for stale in [other for other in tree.origins if other[: len(path)] == path]:
        del tree.origins[stale]
    tree.origins.update(origins if path == override.path else {path: origin})


def _set(tree: Tree, override: Override, value: Any) -> KeyPath:
    """Put `value` at the override's place; the path with list positions as numbers."""
    here: Any = tree.values
    walked: list[str | int] = []
    for position, part in enumerate(override.path):
        last = position == len(override.path) - 1
        key: str | int = part
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                raise ConfigError(
                    f"{override.origin}: {dotted(tuple(walked))} is a list of {len(here)}, without a position {part!r}"
                )
            key = int(part)
        walked.append(key)
        if last:
            here[key] = value
            break
        inner = here.get(part) if isinstance(here, dict) else here[key]
        if not isinstance(inner, dict | list):
            inner = _written_out(inner, tuple(walked), override)
            here[key] = inner
        here = inner
    return tuple(walked)


def _written_out(value: object, path: KeyPath, override: Override) -> Mapping[str, Any]:
    """The mapping that a short form stands for."""
    if value is None:
        return {}
    if isinstance(value, int | float) and path[:2] == ("env", "rewards"):
        return {"weight": value}
    if isinstance(value, str):
        return {_SHORT_FORMS.get(str(path[0]), "name"): value}
    raise ConfigError(f"{override.origin}: {dotted(path)} is {value!r}, not a mapping")

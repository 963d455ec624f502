"""`key=value` overrides from the command line, applied to a composed config one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from memfactory.config.parts import PART_FOLDERS, expand, merged, named_below
from memfactory.config.problems import shown
from memfactory.config.renames import both_names, present_path, use_present_names
from memfactory.config.short_forms import DEFAULT_KINDS, chooses_kind, is_slot, origins_of, short_key
from memfactory.config.slots import named_in
from memfactory.config.tree import (
    DEEPEST,
    KeyPath,
    Origin,
    Renamed,
    Tree,
    dotted,
    leaves,
    moved,
    origin_of,
    parse_scalar,
)
from memfactory.errors import ConfigError
from memfactory.redaction import is_secret, redacted_message

COMMAND_LINE = 1_000_000
"""The layer of overrides: above every file."""
COMMAND_LINE_PREFIX = "command line: "
"""The beginning of an override's origin."""


@dataclass(frozen=True)
class Override:
    """One `key=value` of the command line."""

    text: str
    path: tuple[str, ...]
    value: Any

    @property
    def origin(self) -> Origin:
        """The origin that error messages name."""
        if is_secret(self.path[-1]):
            return Origin(f"{COMMAND_LINE_PREFIX}{dotted(self.path)}=***", layer=COMMAND_LINE)
        if isinstance(self.value, dict | list):
            return Origin(f"{COMMAND_LINE_PREFIX}{dotted(self.path)}={shown(self.value)}", layer=COMMAND_LINE)
        return Origin(f"{COMMAND_LINE_PREFIX}{redacted_message(self.text)}", layer=COMMAND_LINE)


def parse_override(text: str) -> Override:
    """`a.b=value` or `--a.b=value`; `a[0].b` counts as `a.0.b`. Raises ConfigError for anything else."""
    key, equals, value = text.partition("=")
    name = re.sub(r"\[(\d+)\]", r".\1", key.strip().removeprefix("--"))
    if not equals:
        hint = f"write {name}=value" if name else "write key=value"
        raise ConfigError(f"command line: {text}: an override needs '='; {hint}")
    if "/" in name:
        raise ConfigError(
            f"command line: {text}: no file or folder has this name, and {key!r} is not a key; write section.key=value"
        )
    path = tuple(name.split("."))
    if path[0] in ("base", "resolved"):
        raise ConfigError(f"command line: {text}: {path[0]!r} counts in files only; name the config itself")
    if len(path) > DEEPEST:
        raise ConfigError(f"command line: {text:.60}...: nested too deeply: a config has at most {DEEPEST} levels")
    if not all(path) or any(part != part.strip() for part in path):
        raise ConfigError(f"command line: {text}: {key!r} is not a key; write section.key=value")
    if not value.strip():
        raise ConfigError(
            f"command line: {text}: the value is empty; write {name}=null to unset it, {name}='\"\"' for no text"
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
    """All overrides. Raises ConfigError with every one that cannot be read."""
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


def with_present_names(overrides: Sequence[Override], root: KeyPath = ()) -> tuple[list[Override], tuple[Renamed, ...]]:
    """The overrides with the present name of each key and value, and the former names that they use.

    `root` is where their keys stand in the config. Raises ConfigError if the command line has both names of a
    key.
    """
    present: list[Override] = []
    by_former: dict[KeyPath, Renamed] = {}
    by_present: dict[KeyPath, Origin] = {}
    renamed: tuple[Renamed, ...] = ()
    for override in overrides:
        values = _nested(override.path, override.value)
        tree = use_present_names(Tree(values, origins_of(values, override.origin)), root)
        path = cast("tuple[str, ...]", present_path((*root, *override.path))[len(root) :])
        present.append(replace(override, path=path, value=_at(tree.values, path)))
        former = {renaming.path: renaming for renaming in tree.renamed if renaming.former is not None}
        by_former |= former
        written = {place[:n] for place, _ in leaves(tree.values, root) for n in range(len(place) + 1)}
        by_present |= dict.fromkeys(written - {*former}, override.origin)
        renamed += tree.renamed
    both = [both_names(one, by_present[path]) for path, one in by_former.items() if path in by_present]
    if both:
        raise ConfigError(both)
    return present, renamed


def apply_overrides(
    tree: Tree, overrides: Sequence[Override], folders: list[Path], defaults: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Lay each override over `tree`, in place, as if it stood in a file above all others.

    Whole sections (`agent=...`) come first, then names of components, so that keys below them count. `defaults` are
    lists that a section has by default. Raises ConfigError with every override whose key leads
    through something that is not a mapping.
    """
    problems: list[str] = []
    for override in sorted(overrides, key=_turn):
        try:
            _apply(tree, override, folders, defaults)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _turn(override: Override) -> int:
    if len(override.path) == 1:
        return 0
    return 1 if override.path[-1] in ("name", "kind") or short_key(override.path) is not None else 2


def _apply(tree: Tree, override: Override, folders: list[Path], defaults: Mapping[str, Any]) -> None:
    here, path = _place(tree.values, override, defaults)
    value: Any = override.value
    if len(path) > 1 and path[-1] in ("name", "kind") and path[-1] == short_key(path[:-1]):
        # `engine.kind=vllm` means `engine={kind: vllm}`: the engine below goes with its options.
        if here.get(path[-1], DEFAULT_KINDS.get(path[:-1])) == value:
            return
        value, path = {path[-1]: value}, path[:-1]
        here, _ = _place(tree.values, replace(override, path=tuple(map(str, path))), defaults)
    bare = short_key(path) if is_slot(path) or chooses_kind(path) else None
    if isinstance(value, str) and bare is not None:
        # Written out here, so that the name's origin is the command line, also if the options around it are not.
        value = {bare: value}
    origins = {(*path, *inner): origin for inner, origin in origins_of(value, override.origin).items()}
    above = Tree({}, origins)
    if len(path) == 1 and path[0] in PART_FOLDERS:
        part = expand(str(path[0]), value, origins, folders)
        value, above.named = part.values, part.named
        tree.renamed += part.renamed
        above.origins = moved(part.origins, (), path) | {path: override.origin}
    elif path[:1] == ("agent",):
        above.named = named_in(_nested(path[1:], value), above.origins, ("agent",))
    last: Any = path[-1]
    below = here[last] if isinstance(here, list) else here.get(last)
    if path == ("agent",):
        tree.named = named_below(tree, {"agent": value}, ())
    # The rest of a mapping keeps its origin, or else the nearest origin around it.
    stood = next((tree.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in tree.origins), None)
    here[path[-1]] = merged(below, value, path, (), tree.origins)
    tree.origins.update({p: replace(o, layer=min(o.layer, COMMAND_LINE)) for p, o in above.origins.items()})
    if stood is not None and isinstance(below, dict) and here[path[-1]] is not value:
        tree.origins[path] = stood
    tree.named += tuple(replace(named, layer=min(named.layer, COMMAND_LINE)) for named in above.named)


def _nested(path: KeyPath, value: Any) -> Any:
    for part in reversed(path):
        value = {part: value}
    return value


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _place(values: dict[str, Any], override: Override, defaults: Mapping[str, Any]) -> tuple[Any, KeyPath]:
    """The mapping or list that holds the override's place, and the path with list positions as numbers."""
    here: Any = values
    walked: list[str | int] = []
    for position, part in enumerate(override.path):
        key: str | int = part
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                raise ConfigError(
                    f"{override.origin}: {dotted(tuple(walked))} is a list of {len(here)}, without a position {part!r}"
                )
            key = int(part)
        walked.append(key)
        if position == len(override.path) - 1:
            break
        if position == 0 and here.get(part) is None and part in defaults:
            here[part] = deepcopy(defaults[part])
        inner = here.get(part) if isinstance(here, dict) else here[key]
        if not isinstance(inner, dict | list):
            inner = _written_out(inner, tuple(walked), override)
            here[key] = inner
        here = inner
    return here, tuple(walked)


def _written_out(value: object, path: KeyPath, override: Override) -> dict[str, Any]:
    """The mapping that a short form stands for."""
    if value is None:
        return {}
    if isinstance(value, int | float) and path[:2] == ("env", "rewards"):
        return {"weight": value}
    key = short_key(path)
    if isinstance(value, str) and key is not None:
        return {key: value}
    raise ConfigError(f"{override.origin}: {dotted(path)} is {shown(value)}, not a mapping")


def on_command_line(tree: Tree, key: KeyPath) -> bool:
    """Whether the value at `key` was given on the command line."""
    origin = origin_of(tree.origins, key)
    return origin is not None and origin.layer == COMMAND_LINE

"""YAML to plain values that remember the line each was written on, and back. It does not know the meaning of values.

Scalars follow YAML 1.2: `2e-5` is a number, `yes`, `12:30` and `2020-01-01` are text, `010` is ten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from memfactory.errors import ConfigError

KeyPath = tuple[str | int, ...]
_MOST_NODES = 10_000
DEEPEST = 32
"""Levels of nesting that a config can have: far more than any needs, and few enough for recursive
code."""
_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_CORE + tag for tag in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a line of a file, or an override on the command line.

    `layer` counts up from the bottom of a composition; the upper of two values wins.
    """

    source: str
    line: int | None = None
    layer: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Named:
    """A layer names the module of a slot; `name` None stands for the agent's default module."""

    slot: str
    name: str | None
    layer: int


@dataclass(frozen=True)
class Renamed:
    """A layer wrote something by its former name: `old` and `new` as a user writes them.

    `path` is the present place of the value and `former` its former key, if the key has changed.
    """

    origin: Origin
    old: str
    new: str
    path: KeyPath = ()
    former: str | None = None

    @property
    def warning(self) -> str:
        """The warning that names the present key."""
        return f"{self.origin}: {self.old} is now called {self.new}; the old name will go with the next release"


@dataclass
class Tree:
    """Nested mappings, lists and scalars, the origin of each by its path, the modules that its layers name, the former
    names that they use, and the warnings about them."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    named: tuple[Named, ...] = ()
    renamed: tuple[Renamed, ...] = ()
    warnings: tuple[str, ...] = ()


def dotted(path: KeyPath) -> str:
    """`("data", "eval", 0)` as `data.eval.0`."""
    return ".".join(str(part) for part in path)


def origin_of(origins: Mapping[KeyPath, Origin], path: KeyPath) -> Origin | None:
    """The origin of `path`, or of the nearest value around it that was written.

    A mapping that an override's key brought about (`new.key=1` makes `new`) was written where the override was.
    """
    for length in range(len(path), 0, -1):
        near = path[:length]
        if near in origins:
            return origins[near]
        below = next((origin for other, origin in origins.items() if other[:length] == near), None)
        if below is not None:
            return below
    return origins.get(())


def moved(origins: Mapping[KeyPath, Origin], source: KeyPath, target: KeyPath) -> dict[KeyPath, Origin]:
    """The origins at and below `source`, re-rooted at `target`."""
    return {
        (*target, *path[len(source) :]): origin for path, origin in origins.items() if path[: len(source)] == source
    }


def leaves(value: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Every scalar (and empty mapping or list) of a nested value with its path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that a common YAML reader could take for another type; long texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_RESOLVERS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _CORE + _tag, re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
        )


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    escaped = value == "???" or any(separator in value for separator in "\x85\u2028\u2029\ufeff")
    style = '"' if escaped else "|" if "\n" in value.strip("\n") else None
    return dumper.represent_scalar(_CORE + "str", value, style=style)


_Loader.add_constructor(_CORE + "int", _whole)
_Loader.add_constructor(_CORE + "float", _number)
_Dumper.add_representer(str, _text)


def dump(values: Mapping[str, object]) -> str:
    """`values` as YAML that `read_text` reads back to the same values, keys in their order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


def parse_scalar(text: str) -> Any:
    """One value as the command line gives it: a flow list or mapping, a quoted text, a number, or plain text.

    Raises ValueError with a sentence when `text` opens a list, a mapping or a quotation that does not parse.
    """
    text = text.strip()
    structured = text[:1] in ("[", "{", '"', "'")
    try:
        tree = read_text(f"value: {text}" if structured else "", "")
    except ConfigError as error:
        raise ValueError(f"{text!r} is not valid YAML ({error.problems[0].split(': ', 1)[-1]})") from None
    if structured:
        return tree.values["value"]
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        node = yaml.ScalarNode(tag, text)
        return text if tag == _CORE + "merge" else loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def read_file(path: Path, shown: str) -> Tree:
    """The YAML file at `path`, called `shown` in messages. Raises ConfigError with every problem of its form."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown}: not a YAML file: it is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read: {error.strerror or error}") from None
    return read_text(text, shown)


def read_text(text: str, shown: str) -> Tree:
    """As `read_file`, from text. Duplicate keys, tags beyond plain YAML and endless nesting are errors."""
    loader = _Loader("")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Tree()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{shown}:{node.start_mark.line + 1}: expected a mapping of sections such as `model:`")
        walk = _Walk(shown)
        walk.visit(node, (), ())
        if walk.problems:
            raise ConfigError(walk.problems)
        return Tree(_with_text_keys(loader.construct_document(node)), walk.origins)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{shown}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{shown}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{shown}: nested too deeply") from None
    finally:
        loader.dispose()


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value


class _Walk:
    """Goes once through the nodes of a document for their lines and for errors that plain YAML readers ignore."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.origins: dict[KeyPath, Origin] = {}
        self.problems: list[str] = []
        self.nodes = 0

    def visit(self, node: yaml.Node, path: KeyPath, inside: tuple[int, ...]) -> None:
        self.nodes += 1
        where = f"{self.shown}:{node.start_mark.line + 1}"
        if id(node) in inside:
            raise ConfigError(f"{where}: the aliases (*) of this file never end")
        if self.nodes > _MOST_NODES:
            raise ConfigError(f"{where}: more than {_MOST_NODES:,} values, those behind aliases (*) counted each time")
        if len(path) > DEEPEST:
            raise ConfigError(f"{where}: nested too deeply: a config has at most {DEEPEST} levels")
        line = node.start_mark.line + 1
        self.origins.setdefault(path, Origin(self.shown, line))
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace(_CORE, "!!")
            self._problem(line, path, f"the tag {tag} is not supported; write plain values")
        elif isinstance(node, yaml.MappingNode):
            self._mapping(node, path, (*inside, id(node)))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, index), (*inside, id(node)))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, inside: tuple[int, ...]) -> None:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _CORE + "merge":
                self.visit(value_node, (*path, "<<"), inside)
                continue
            key = key_node.value
            if not isinstance(key, str) or (key_node.tag not in (_CORE + "str", _CORE + "int")):
                shown_key = key if isinstance(key, str) else "a list or mapping"
                self._problem(line, path, f"the key {shown_key!r} is not text; put it in quotes")
                continue
            if key_node.tag == _CORE + "int" and not key.isdecimal():
                self._problem(line, path, f"the key {key!r} is not text; put it in quotes")
                continue
            key = str(int(key)) if key_node.tag == _CORE + "int" else key
            if key in seen:
                self._problem(line, (*path, key), f"written twice (first on line {seen[key]})")
                continue
            seen[key] = line
            self.origins[(*path, key)] = Origin(self.shown, line)
            self.visit(value_node, (*path, key), inside)

    def _problem(self, line: int, path: KeyPath, message: str) -> None:
        where = f"{dotted(path)}: " if path else ""
        self.problems.append(f"{self.shown}:{line}: {where}{message}")

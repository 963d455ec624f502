"""String-keyed registries that find components by reading source files, and import one only when it is asked for.

A component is one file with `@MODULES.register("my_module")` above its class. Built-in packages are scanned as text, so
listing them imports nothing. A user's own file joins through `plugins:` (see `memfactory.plugins`), where
the decorator runs on import. It does not know the purpose of the components.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import TypeVar as DefaultTypeVar

from memfactory.errors import ConfigError, unknown

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Options(BaseModel):
    """Base of every component's options: unknown keys are errors, values are checked, nothing changes afterwards.

    >>> class Cut(Options):
    ...     tokens: int = 100
    >>> Cut(tokens=50).tokens
    50
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """Pydantic takes true for 1; as text it fails like any other text in place of a number."""
        if not isinstance(values, dict):
            return values
        values = {name: cls._with_default_kind(name, value) for name, value in values.items()}
        kinds = {name: {field.annotation, *get_args(field.annotation)} for name, field in cls.model_fields.items()}
        return {
            name: str(value).lower()
            if isinstance(value, bool) and bool not in kinds.get(name, ()) and kinds.get(name, set()) & {int, float}
            else value
            for name, value in values.items()
        }

    def without_effect(self) -> Mapping[str, str]:
        """Options that change nothing beside the others, each with the reason. If such an option differs from its
        default, the config's check warns of it."""
        return {}

    @classmethod
    def _with_default_kind(cls, name: str, value: Any) -> Any:
        """Fill in the default's kind if none of several kinds is chosen."""
        default = cls.model_fields[name].default if name in cls.model_fields else None
        if not isinstance(value, dict) or "kind" in value or not isinstance(default, Options):
            return value
        kind = getattr(default, "kind", None)
        has_kinds = cls.model_fields[name].discriminator == "kind"
        return {"kind": kind, **value} if has_kinds and isinstance(kind, str) else value


AnyOptions: TypeAlias = Options
OptionsT = DefaultTypeVar("OptionsT", bound=Options, default=Options, covariant=True)


class Component(Generic[OptionsT]):
    """Base of configurable components. The type argument declares the options, once:

        class Brevity(RewardFunction[BrevityOptions]): ...

    Then `Brevity.Options` is BrevityOptions, and a type checker knows `self.options` as BrevityOptions.
    """

    Options: ClassVar[type[AnyOptions]] = AnyOptions
    options: OptionsT

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "Options" in vars(cls):
            return
        for base in vars(cls).get("__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Component):
                argument = get_args(base)[0]
                # A base class that is generic itself leaves the choice to its subclasses; its bound is the default.
                cls.Options = argument if isinstance(argument, type) else argument.__bound__


@dataclass(frozen=True)
class Entry:
    """Where a component lives. `options` is "module:attribute" if the options must be read without the class."""

    name: str
    target: str
    summary: str
    options: str | None = None


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry(Generic[T]):
    """The components of one kind (`kind` is the word used in messages), looked up by name."""

    def __init__(self, kind: str, package: str, base: str | None = None, *, options: str | None = None) -> None:
        """`base` ("module:attribute") is the class that every component derives from. A registry whose base is
        expensive to import names the base of its `options` as well, so that they are checked without it."""
        self.kind = kind
        self.package = package
        self.base = base
        self.options_base = options
        self._scanned: dict[str, Entry] | None = None
        self._registered: dict[str, tuple[Entry, Any]] = {}

    def register(self, name: str, *, options: str | None = None) -> Callable[[C], C]:
        """Class decorator: the class becomes the component called `name`.

        `options` ("module:attribute") is only for classes whose file is expensive to import; otherwise the nested
        class `Options` counts. Registering a name that another class holds is an error.
        """

        if not isinstance(name, str):
            raise ConfigError(
                f'{self.kind} {getattr(name, "__name__", name)!r}: write `.register("its_name")` above it'
            )

        def decorate(cls: C) -> C:
            if not isinstance(cls, type):
                raise ConfigError(f"{self.kind} {name!r} must be a class, but {cls!r} is none")
            target = f"{cls.__module__}:{cls.__qualname__}"
            summary = (cls.__doc__ or "").strip().partition("\n")[0]
            held = self._registered.get(name)
            other = held[0].target if held else self._builtin().get(name, Entry(name, target, "")).target
            if other != target:
                raise ConfigError(f"{self.kind} {name!r} is registered twice: by {other} and by {target}")
            self._registered[name] = (Entry(name, target, summary, options), cls)
            return cls

        return decorate

    def holds(self, cls: type) -> bool:
        """Whether `cls` was registered here."""
        return any(held is cls for _, held in self._registered.values())

    def wrong(self, name: str) -> str | None:
        """Why a user's own component called `name` cannot be used at all; None if it can, and for built-in ones."""
        if name not in self._registered or self._registered[name][1].__module__.startswith(f"{self.package}."):
            return None
        try:
            if self.options_base is None:
                self.get(name)
            self.options(name)
        except ConfigError as error:
            return str(error)
        return None

    def names(self) -> list[str]:
        """Every name, sorted."""
        return sorted({**self._builtin(), **{name: entry for name, (entry, _) in self._registered.items()}})

    def is_builtin(self, name: str) -> bool:
        """Whether the component called `name` comes with MemFactory."""
        return name in self._builtin()

    def name_of(self, cls: type) -> str:
        """The name that `cls` is registered under; a class that never was goes by its own."""
        return next((name for name, (_, held) in self._registered.items() if held is cls), cls.__name__)

    def entry(self, name: str) -> Entry:
        """The entry of `name`; ConfigError with the nearest name when there is none."""
        if name in self._registered:
            return self._registered[name][0]
        if name in self._builtin():
            return self._builtin()[name]
        raise ConfigError(unknown(self.kind, name, self.names()))

    def get(self, name: str) -> type[T]:
        """The class of `name`, imported now if need be."""
        entry = self.entry(name)
        if name not in self._registered:
            return _resolve(entry.target)
        component = self._registered[name][1]
        base = _resolve(self.base) if self.base else object
        if not issubclass(component, base):
            raise ConfigError(f"{self.kind} {name!r} ({_home(component)}) must be a subclass of {self.base}")
        return component

    def options(self, name: str) -> type[Options]:
        """The options model of `name`; a component without options takes none."""
        entry = self.entry(name)
        if entry.options:
            return _resolve(entry.options)
        cls = self._registered[name][1] if name in self._registered else self.get(name)
        options = getattr(cls, "Options", Options)
        base = self._base_of_options()
        if not (isinstance(options, type) and issubclass(options, base)):
            raise ConfigError(
                f"{self.kind} {name!r} ({_home(cls)}): its Options must derive from {base.__name__} of "
                f"{base.__module__}"
            )
        return options

    def _base_of_options(self) -> type[Options]:
        """The class that the options of every component derive from."""
        if self.options_base is not None:
            return _resolve(self.options_base)
        return getattr(_resolve(self.base), "Options", Options) if self.base else Options

    def _builtin(self) -> dict[str, Entry]:
        if self._scanned is None:
            self._scanned = {entry.name: entry for path, module in self._files() for entry in _scan(path, module)}
        return self._scanned

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Every source file of the package and its subpackages with its module's name, but for subpackages that
        another registry scans (rewards stand in a subpackage of the environments)."""
        spec = importlib.util.find_spec(self.package)
        others = [f"{registry.package}." for registry in ALL if registry.package.startswith(f"{self.package}.")]
        for folder in list(spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*.py")):
                module = ".".join((self.package, *path.relative_to(folder).with_suffix("").parts))
                if not module.startswith(tuple(others)):
                    yield path, module


def _scan(path: Path, module: str) -> list[Entry]:
    """The classes of a source file that carry `@X.register("name", ...)`, read without importing it."""
    source = path.read_text(encoding="utf-8")
    if ".register(" not in source:
        return []
    entries = []
    for node in ast.parse(source, str(path)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "register":
                name = ast.literal_eval(call.args[0])
                options = next((ast.literal_eval(k.value) for k in call.keywords if k.arg == "options"), None)
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                entries.append(Entry(name, f"{module}:{node.name}", summary, options))
    return entries


MODULES: Registry[Any] = Registry("module", "memfactory.modules", "memfactory.dialogue:Module")
AGENTS: Registry[Any] = Registry("agent", "memfactory.agents", "memfactory.dialogue:Agent")
ENVS: Registry[Any] = Registry("environment", "memfactory.envs", "memfactory.envs.base:Environment")
REWARDS: Registry[Any] = Registry("reward", "memfactory.envs.rewards", "memfactory.envs.rewards.base:RewardFunction")
DATASETS: Registry[Any] = Registry("dataset", "memfactory.data", "memfactory.data.base:Dataset")
TRAINERS: Registry[Any] = Registry(
    "trainer",
    "memfactory.trainers",
    "memfactory.trainers.base:Trainer",
    options="memfactory.config.training:LoopOptions",
)
OBJECTIVES: Registry[Any] = Registry("objective", "memfactory.policy.objectives")
ADVANTAGES: Registry[Any] = Registry("advantage estimator", "memfactory.policy.advantages")
ALL = (MODULES, AGENTS, ENVS, REWARDS, DATASETS, TRAINERS, OBJECTIVES, ADVANTAGES)


def _home(cls: type) -> str:
    """The file of a user's class."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{cls.__qualname__} of {file or cls.__module__}"

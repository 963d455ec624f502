"""Plugins: their files are located, read once, imported, and copied into the run.

A file is executed as it was read and hashed, never from compiled files beside it. Trust is decided elsewhere.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from memfactory.errors import ConfigError
from memfactory.files.atomic import write_bytes
from memfactory.files.places import expanded

FOLDER = "plugins"
"""Where a run keeps copies of the plugins that it was started with."""


@dataclass(frozen=True)
class Plugin:
    """A plugin as it was read: `name` as it was written, `source` the content of the file (None: an importable
    package), `path` its file, `digest` the SHA-256 of the source or of all sources of the package."""

    name: str
    path: Path | None
    source: bytes | None
    digest: str

    @property
    def copy(self) -> str:
        """The name of its copy in a run, with a digest of the content. A package has no copy and keeps its name."""
        if self.source is None or self.path is None:
            return self.name
        mark = f"-{self.digest[:16]}"
        return f"{FOLDER}/{self.path.stem.removesuffix(mark)}{mark}.py"

    @property
    def title(self) -> str:
        """The part of its name that does not depend on the content."""
        return self.copy.replace(f"-{self.digest[:16]}", "")

    @property
    def described(self) -> str:
        """The plugin as messages name it."""
        lines = "" if self.source is None else f"{len(self.source.splitlines())} lines, "
        return f"{self.path or self.name} ({lines}SHA-256 {self.digest[:16]})"


def is_file_name(name: str) -> bool:
    """Whether the plugin is named by a file instead of a module."""
    return name.endswith(".py") or "/" in name


def find_plugin(name: str, base_dir: Path | None = None, *, beside: bool = True) -> Plugin:
    """The plugin called `name`: a path to a .py file (relative to the working directory or to `base_dir`) or a dotted
    module name, which may lie in `base_dir` where `beside` says so.

    Nothing is imported. Raises ConfigError if none exists.
    """
    folders = [Path.cwd(), *([] if base_dir is None else [base_dir])]
    if is_file_name(name):
        file = expanded(name)
        path = next((place for folder in folders if (place := folder / file).is_file()), None)
        if path is None:
            places = ", ".join(str(folder / file) for folder in folders)
            raise ConfigError(f"there is no file {name!r} (looked at {places})")
        return _read(name, path.resolve())
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name!r} is neither a .py file nor a dotted module name")
    if beside and "." not in name:
        path = next((place for folder in reversed(folders) if (place := folder / f"{name}.py").is_file()), None)
        if path is not None:
            return _read(name, path.resolve())
    spec = _spec(name.partition(".")[0], [str(folder) for folder in reversed(folders)] if beside else [])
    if spec is None:
        raise ConfigError(f"plugin {name!r} cannot be imported: there is no module of that name")
    origin = None if spec.origin is None else Path(spec.origin)
    return Plugin(name, origin, None, _digest_of_package(spec))


def load_plugin(plugin: Plugin, base_dir: Path | None = None) -> None:
    """Import a plugin; the same content twice does nothing. Raises ConfigError for one whose own code cannot be
    loaded, with file and line, and where another module of its name is loaded already."""
    alias = f"memfactory_plugin_{plugin.digest[:16]}"
    if alias in sys.modules:
        return
    if plugin.source is not None and is_file_name(plugin.name):
        _execute(plugin, plugin.source, alias)
        return
    if plugin.name in sys.modules:
        _refuse_another(plugin, sys.modules[plugin.name])
        sys.modules[alias] = sys.modules[plugin.name]
        return
    # A file was found beside the config or in the working directory, which need not be where Python looks.
    folder = base_dir if plugin.source is None or plugin.path is None else plugin.path.parent
    here = [] if folder is None else [str(folder)]
    sys.path[:0] = here
    try:
        importlib.import_module(plugin.name)
    except ModuleNotFoundError as error:
        if error.name and (plugin.name == error.name or plugin.name.startswith(error.name + ".")):
            raise ConfigError(f"plugin {plugin.name!r} cannot be imported: there is no module of that name") from None
        raise _unloadable(plugin.name, error) from error
    except BaseException as error:
        raise _unloadable(plugin.name, error) from error
    finally:
        del sys.path[: len(here)]
    # A run's copy of it is the same plugin.
    sys.modules[alias] = sys.modules[plugin.name]


def _refuse_another(plugin: Plugin, loaded: ModuleType) -> None:
    """Raise ConfigError if `loaded`, which has the plugin's name, comes from another file."""
    file = getattr(loaded, "__file__", None)
    if plugin.source is not None and plugin.path is not None and (file is None or not plugin.path.samefile(file)):
        raise ConfigError(
            f"plugin {plugin.name!r} ({plugin.path}): another module of that name is loaded already, from "
            f"{file or 'Python itself'}; name the file instead ({plugin.path.name})"
        )


def _execute(plugin: Plugin, source: bytes, module_name: str) -> None:
    module = ModuleType(module_name)
    module.__file__ = str(plugin.path)
    sys.modules[module_name] = module
    try:
        exec(compile(source, str(plugin.path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[module_name]
        raise _unloadable(plugin.name, error) from error


def keep_copies(plugins: Sequence[Plugin], folder: Path) -> list[str]:
    """Copy plugins into the run folder `folder`; their names in its config."""
    for plugin in plugins:
        place = folder / plugin.copy
        if plugin.source is not None and not place.is_file():
            write_bytes(place, plugin.source)
    return [plugin.copy for plugin in plugins]


def _read(name: str, path: Path) -> Plugin:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name!r} cannot be read: {error.strerror or error}") from None
    return Plugin(name, path, source, sha256(source).hexdigest())


def _spec(top: str, first: list[str]) -> ModuleSpec | None:
    """The spec of a top-level module, found without importing anything."""
    known = sys.modules.get(top)
    if known is not None and known.__spec__ is not None:
        return known.__spec__
    if top in sys.builtin_module_names:
        return ModuleSpec(top, None)
    return PathFinder.find_spec(top, [*first, *sys.path])


def _digest_of_package(spec: ModuleSpec) -> str:
    """Of every source file of a package, or of a module's one."""
    folders = sorted(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py"))]
    if not files and spec.origin is not None and Path(spec.origin).is_file():
        files = [Path(spec.origin)]
    digest = sha256(spec.name.encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _unloadable(name: str, error: BaseException) -> BaseException:
    """The error for a plugin whose code raised `error` while it was imported; Ctrl-C is returned unchanged."""
    if isinstance(error, KeyboardInterrupt | MemoryError):
        return error
    if isinstance(error, SyntaxError) and error.filename:
        return ConfigError(f"plugin {name!r} is not valid Python: {error.filename}:{error.lineno}: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith("<") and not _is_library(Path(f.filename))]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    if isinstance(error, ConfigError):
        return ConfigError([f"plugin {name!r} cannot be loaded{place}: {problem}" for problem in error.problems])
    return ConfigError(f"plugin {name!r} cannot be loaded: {type(error).__name__}{place}: {error}")


def _is_library(file: Path) -> bool:
    """Whether a file is MemFactory's or belongs to an installed package."""
    places = [Path(__file__).parents[1], *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib"))]
    return any(file.is_relative_to(place) for place in places)

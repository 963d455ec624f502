"""Composition: a config, the config it is based on, and the parts (agent, environment, trainer) it names.

A part is a YAML file in `agents/`, `envs/` or `train/` beside the config, in a `configs/` folder around it, in the
working directory's `configs/`, or in the package's own. It does not know the meaning of options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memfactory.config.begun_anew import begun_anew
from memfactory.config.renames import use_present_names
from memfactory.config.short_forms import DEFAULT_KINDS, chooses_kind, is_slot, short_key
from memfactory.config.slots import named_in
from memfactory.config.tree import KeyPath, Named, Origin, Tree, moved, read_file
from memfactory.errors import ConfigError, unknown

PART_FOLDERS = {"agent": "agents", "env": "envs", "train": "train"}
PART_WORDS = {"agent": "agent", "env": "environment", "train": "trainer"}
SUFFIXES = (".yaml", ".yml")
_REPLACED_WHOLE = {("env", "rewards"), ("data", "train"), ("data", "eval")}


def is_file(path: Path) -> bool:
    """Whether `path` is a file; False for a text that cannot be a path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether `path` is a folder; False for a text that cannot be a path."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def packaged_configs() -> Path:
    """The configs that come with MemFactory: in the package, or at the root of an editable checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parents[1] / "configs"


def config_folders(near: Path | None) -> list[Path]:
    """Folders that may hold configs and the folders of parts, nearest first. `near` is a config's own folder."""
    around = [] if near is None else [near, near / "configs", *(p for p in near.parents if p.name == "configs")]
    candidates = [*around, Path("configs"), packaged_configs()]
    folders: dict[Path, Path] = {}
    for folder in candidates:
        if is_dir(folder):
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def part_names(section: str, folders: list[Path]) -> list[str]:
    """The parts that exist for a section (`agent`, `env`, `train`)."""
    return sorted({path.stem for folder in folders for path in _yaml_files(folder / PART_FOLDERS[section])})


def runnable_configs(folders: list[Path]) -> dict[str, Path]:
    """Whole configs by name: the YAML files directly in the config folders, nearest first."""
    configs: dict[str, Path] = {}
    for folder in folders:
        for path in _yaml_files(folder):
            configs.setdefault(path.stem, path)
    return configs


def find_part(section: str, name: str, folders: list[Path]) -> Path | None:
    """The file of the part called `name`, or the YAML file that `name` is the path of; else None."""
    if name.endswith(SUFFIXES):
        direct = [Path(name), *(folder / name for folder in folders)]
        return next((path for path in direct if is_file(path)), None)
    if not name or "/" in name or "\0" in name:
        return None
    places = [folder / PART_FOLDERS[section] / f"{name}{suffix}" for folder in folders for suffix in SUFFIXES]
    return next((path for path in places if is_file(path)), None)


def _yaml_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.is_file())


def show_path(path: Path) -> str:
    """`path`, relative to the working directory if it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def compose_file(path: Path, chain: tuple[Path, ...] = ()) -> Tree:
    """The config at `path` over its base, with every part that it names filled in.

    Raises ConfigError with all problems of form in the files, or for a circle of `base`.
    """
    if path.resolve() in chain:
        raise ConfigError(f"{show_path(path)}: base: a circle of configs based on each other")
    tree = use_present_names(read_file(path, show_path(path)))
    folders = config_folders(path.parent)
    expand_sections(tree, folders)
    base = tree.values.pop("base", None)
    if base is None:
        return tree
    where = tree.origins[("base",)]
    known = runnable_configs(folders)
    file = next((p for p in (path.parent / str(base), Path(str(base))) if is_file(p)), known.get(str(base)))
    if file is None or not isinstance(base, str):
        raise ConfigError(f"{where}: base: {unknown('config', str(base), known)}")
    below = compose_file(file, (*chain, path.resolve()))
    if path.parent.resolve() != packaged_configs().resolve():
        tree.warnings += tuple(begun_anew(below, tree, PART_FOLDERS, PART_FOLDERS.values()))
    return merge(below, tree)


def expand_sections(tree: Tree, folders: list[Path]) -> None:
    """Replace each part that `tree` names by the part's own content, in place.

    In a config that says `resolved: true`, mappings are complete and only bare names are parts.
    """
    for section in PART_FOLDERS:
        if section in tree.values:
            complete = tree.values.get("resolved") is True
            part = expand(section, tree.values[section], tree.origins, folders, complete=complete)
            tree.values[section] = part.values
            for path in [path for path in tree.origins if path[:1] == (section,) and len(path) > 1]:
                del tree.origins[path]
            tree.origins.update(moved(part.origins, (), (section,)))
            tree.named = part.named or tree.named
            tree.renamed += part.renamed


@dataclass(frozen=True)
class _Reference:
    """A request for a part: its name, whether it must be a file, and the origin of the request."""

    name: str
    must_be_file: bool
    origin: Origin


def expand(
    section: str, value: Any, origins: Mapping[KeyPath, Origin], folders: list[Path], *, complete: bool = False
) -> Tree:
    """A section's value with its part merged in under it; its paths begin at the section itself.

    `name` or `base` names a part, `base` only a part. Anything that is not a part is left as it is.
    """
    own = Tree(value, moved(origins, (section,), ()))
    if section == "agent":
        own.named = named_in(value, own.origins)
    here = origins.get((section,), Origin("the command line"))
    if isinstance(value, str):
        own = Tree({"name": value}, {(): here, ("name",): here})
        reference = _Reference(value, False, here)
    elif isinstance(value, dict) and isinstance(value.get("base"), str):
        reference = _Reference(value["base"], True, own.origins.get(("base",), here))
        own.values = {key: inner for key, inner in value.items() if key != "base"}
    elif isinstance(value, dict) and isinstance(value.get("name"), str) and not complete:
        reference = _Reference(value["name"], False, own.origins.get(("name",), here))
    else:
        return own
    file = find_part(section, reference.name, folders)
    if file is None:
        if reference.must_be_file or reference.name.endswith(SUFFIXES):
            kind = f"{PART_WORDS[section]} part"
            raise ConfigError(
                f"{reference.origin}: {section}: {unknown(kind, reference.name, part_names(section, folders))}"
            )
        return own
    if not reference.must_be_file:
        own.values = {key: inner for key, inner in own.values.items() if key != "name"}
    return merge(_read_part(section, file, folders, ()), own, (section,))


def _read_part(section: str, file: Path, folders: list[Path], chain: tuple[Path, ...]) -> Tree:
    if file.resolve() in chain:
        raise ConfigError(f"{show_path(file)}: base: a circle of parts based on each other")
    part = use_present_names(read_file(file, show_path(file)), (section,))
    if section == "agent":
        part.named = named_in(part.values, part.origins)
    base = part.values.pop("base", None)
    if base is None:
        part.values.setdefault("name", file.stem)
        part.origins.setdefault(("name",), Origin(show_path(file)))
        return part
    below = find_part(section, str(base), folders)
    if below is None:
        words = unknown(f"{PART_WORDS[section]} part", str(base), part_names(section, folders))
        raise ConfigError(f"{part.origins[('base',)]}: base: {words}")
    return merge(_read_part(section, below, folders, (*chain, file.resolve())), part, (section,))


def merge(below: Tree, above: Tree, root: KeyPath = ()) -> Tree:
    """`above` laid over `below`: mappings merge key by key, everything else is replaced.

    Rewards and datasets are replaced as a whole, and so is a component or engine when `above` names another: the
    options of the former one do not fit. Which options of a slot's module still count is known once its
    agent is (see `slots.py`). `root` is where the trees stand in the config.
    """
    origins = dict(below.origins)
    values = merged(below.values, above.values, (), root, origins)
    lift = max((origin.layer for origin in below.origins.values()), default=-1) + 1
    origins |= {path: replace(origin, layer=origin.layer + lift) for path, origin in above.origins.items()}
    lifted = tuple(replace(named, layer=named.layer + lift) for named in above.named)
    renamed = (*below.renamed, *above.renamed)
    named = (*named_below(below, above.values, root), *lifted)
    return Tree(values, origins, named, renamed, (*below.warnings, *above.warnings))


def named_below(below: Tree, above: Any, root: KeyPath) -> tuple[Named, ...]:
    """The modules that `below` names, unless `above` brings another agent."""
    before: Any
    if root == ("agent",):
        before, after = below.values, above
    else:
        before, after = below.values.get("agent"), above.get("agent", {})
    stays = isinstance(before, dict) and isinstance(after, dict) and not _replaces(before, after, ("agent",), root)
    return below.named if stays else ()


def merged(below: Any, above: Any, path: KeyPath, root: KeyPath, origins: dict[KeyPath, Origin]) -> Any:
    """The value `above` laid over `below`; replaced values leave `origins`.

    A short form below a mapping counts as the mapping that it stands for, and so does the bare name of a kind or a
    module above one.
    """
    place = (*root, *path)
    key = short_key(place)
    if key is not None and isinstance(above, dict) and isinstance(below, str):
        below = {key: below}
    elif (
        key is not None
        and isinstance(below, dict)
        and isinstance(above, str)
        and (chooses_kind(place) or is_slot(place))
    ):
        above = {key: above}
        origins.pop((*path, key), None)
    if not isinstance(below, dict) or not isinstance(above, dict) or _replaces(below, above, place, root):
        for stale in [other for other in origins if other[: len(path)] == path and other != path]:
            del origins[stale]
        return above
    both = dict(below)
    for key, value in above.items():
        both[key] = merged(below[key], value, (*path, key), root, origins) if key in below else value
    return both


def _replaces(below: Mapping[str, Any], above: Mapping[str, Any], place: KeyPath, root: KeyPath) -> bool:
    """Whether the mapping `above` stands in for `below` instead of adding to it."""
    if place in _REPLACED_WHOLE:
        return True
    if chooses_kind(place):
        return "kind" in above and above["kind"] != below.get("kind", DEFAULT_KINDS.get(place))
    if is_slot(place):
        return False
    named = bool(place) and "name" in above
    return named and (root == () or above["name"] != below.get("name"))

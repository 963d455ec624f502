"""A warning for a section that names the component of the config below it again, and so drops options of that config.

A name begins a section anew, from its part and from the defaults. Options that a part gives are no loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from memfactory.config.problems import located, shown
from memfactory.config.tree import KeyPath, Origin, Tree, dotted, leaves, origin_of

MOST = 4
"""The most options that a warning lists."""


def begun_anew(below: Tree, above: Tree, sections: Collection[str], part_folders: Collection[str]) -> Iterator[str]:
    """A warning for each of `sections` in which `above`, a file's values, repeats the name that `below` has and drops
    options of it. `part_folders` are the folders of files whose options are those of a part."""
    for section in sections:
        before, after = below.values.get(section), above.values.get(section)
        if not (isinstance(before, dict) and isinstance(after, dict)) or after.get("name") != before.get("name"):
            continue
        place = origin_of(above.origins, (section, "name")) or Origin("")
        dropped = [
            (path, value) for path, value in _options(below, section, part_folders) if not _has(above, path, place)
        ]
        if dropped and "name" in after and not _is_part(place, part_folders):
            listed = [f"{dotted(path)}: {shown(value)}" for path, value in dropped[:MOST]]
            more = f" and {len(dropped) - MOST} more" if len(dropped) > MOST else ""
            text = (
                f"the name {after['name']!r} begins the section anew, without these options of the config below: "
                f"{', '.join(listed)}{more}. Leave the name out to keep them"
            )
            yield located((section,), text, place)


def _options(tree: Tree, section: str, part_folders: Collection[str]) -> Iterator[tuple[KeyPath, object]]:
    for path, value in leaves(tree.values[section], (section,)):
        origin = origin_of(tree.origins, path)
        if path != (section, "name") and origin is not None and not _is_part(origin, part_folders):
            yield path, value


def _has(tree: Tree, path: KeyPath, place: Origin) -> bool:
    """Whether the file that wrote `place` also wrote `path`, or a value in its stead."""
    here: object = tree.values
    for length, part in enumerate(path):
        if not isinstance(here, dict):
            return True
        if part not in here:
            return False
        here = here[part]
        origin = tree.origins.get(path[: length + 1])
        if origin is not None and not isinstance(here, dict):
            return origin.source == place.source
    return True


def _is_part(origin: Origin, part_folders: Collection[str]) -> bool:
    return Path(origin.source).parent.name in part_folders

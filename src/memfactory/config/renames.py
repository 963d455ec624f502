"""Former names of config keys and values. Each counts for one release, with a warning that names the present one.

A layer (a file, a part, the command line) gets the present names before it is merged with others, so the upper layer
wins whichever name it uses. The schema knows the present names only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import product
from typing import Any

from memfactory.config.messages import fields_at
from memfactory.config.tree import KeyPath, Origin, Renamed, Tree, dotted, origin_of
from memfactory.errors import ConfigError
from memfactory.registry import DATASETS, OBJECTIVES, TRAINERS, Registry

_SETS = ("data.train", "data.eval.*", "train.stages.*.data")
_DATASETS = (*_SETS, *(f"{place}.parts.*.data" for place in _SETS))
_AGENTS = ("agent", "eval.baselines.*")

KEYS: dict[str, str] = {
    "train.generations": "group_size",
    "train.max_unknown_share": "max_unknown_fraction",
    "train.max_failed_share": "max_failed_fraction",
    "train.optimizer.final_share": "min_lr_ratio",
    "train.loss.kl_weight": "kl_coef",
    "train.loss.entropy_weight": "entropy_coef",
    "train.loss.reference_every": "reference_sync_steps",
    "train.loss.objective.share": "fraction",
    "eval.max_unknown_share": "max_unknown_fraction",
    "engine.longest_wait": "max_retry_wait",
    "engines.*.longest_wait": "max_retry_wait",
    "memory.embedder.longest_wait": "max_retry_wait",
    "env.rewards.compression.share": "fraction",
    **{f"{place}.sections": "chunks" for place in _DATASETS},
    **{f"{place}.facts_per_section": "facts_per_chunk" for place in _DATASETS},
    **{f"{place}.section_words": "chunk_words" for place in _DATASETS},
    **{f"{place}.fewest": "min_candidates" for place in _DATASETS},
    **{f"{place}.found": "max_candidates" for place in _DATASETS},
    **{f"{place}.parts.*.share": "weight" for place in _SETS},
}
"""The present name of each key, by the dotted path of its former one; `*` stands for any one part."""
VALUES: dict[tuple[str, str], str] = {
    **{(f"{agent}.order", "section_first"): "chunk_first" for agent in _AGENTS},
    **{(f"{agent}.modules.*.order", "section_first"): "chunk_first" for agent in _AGENTS},
    **{(f"{place}.reader.order", "section_first"): "chunk_first" for place in _DATASETS},
    **{
        (key, "memory_agent_section_first"): "memory_agent_chunk_first"
        for key in ("agent", "agent.name", "agent.base", "eval.baselines.*", "eval.baselines.*.base")
    },
    ("base", "memagent_qwen3_4b_section_first"): "memagent_qwen3_4b_chunk_first",
}
"""The present name of each value, by the dotted path of its key and the former name."""
_REFERENCE = re.compile(r"(\$\{\s*)(\.*)([^{}:$]*?)(\s*\})")
_REGISTRIES: dict[str, Registry[Any]] = {
    "train": TRAINERS,
    "train.loss.objective": OBJECTIVES,
    **dict.fromkeys(_DATASETS, DATASETS),
}


def _by_last_part(dotted_keys: Mapping[str, str]) -> dict[tuple[int, str], list[tuple[tuple[str, ...], str]]]:
    patterns: dict[tuple[int, str], list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for key, new in dotted_keys.items():
        pattern = tuple(key.split("."))
        patterns[len(pattern), pattern[-1]].append((pattern, new))
    return patterns


_KEYS = _by_last_part(KEYS)


def _matches(pattern: tuple[str, ...], path: KeyPath) -> bool:
    return len(pattern) == len(path) and all(part in ("*", str(key)) for part, key in zip(pattern, path, strict=True))


def present_key(path: KeyPath) -> str | None:
    """The present name of the last key of `path`; None if the key has its present name."""
    candidates = _KEYS.get((len(path), str(path[-1])), ()) if path else ()
    return next((new for pattern, new in candidates if _matches(pattern, path)), None)


def present_path(path: KeyPath) -> KeyPath:
    """`path` with the present name of each of its keys."""
    return tuple(present_key(path[: length + 1]) or part for length, part in enumerate(path))


def _present_value(path: KeyPath, value: str) -> str | None:
    named = (new for (key, old), new in VALUES.items() if old == value and _matches(tuple(key.split(".")), path))
    return next(named, None)


def use_present_names(tree: Tree, root: KeyPath = ()) -> Tree:
    """Give every key and value of the layer `tree` its present name, in place; `tree`.

    `root` is where the layer stands in the config. Raises ConfigError if the layer has both names of a key.
    """
    layer = _Layer(tree.origins, root)
    values = layer.value(tree.values, root)
    if layer.problems:
        raise ConfigError(layer.problems)
    tree.values = values
    tree.origins = {present_path((*root, *path))[len(root) :]: origin for path, origin in tree.origins.items()}
    tree.renamed += tuple(layer.renamed)
    return tree


class _Layer:
    """Goes once through the values of a layer, and notes each former name with its origin."""

    def __init__(self, origins: Mapping[KeyPath, Origin], root: KeyPath) -> None:
        self._origins = origins
        self._root = root
        self.renamed: list[Renamed] = []
        self.problems: list[str] = []

    def value(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return self._mapping(value, path)
        if isinstance(value, list):
            return [self.value(inner, (*path, index)) for index, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        new = _present_value(path, value)
        if new is not None:
            key = dotted(path)
            self.renamed.append(Renamed(self._origin(path), f"{key}: {value}", f"{key}: {new}", path))
            return new
        return _REFERENCE.sub(lambda match: self._reference(match, path), value)

    def _mapping(self, values: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        both: dict[str, Any] = {}
        for key, inner in values.items():
            place = (*path, key)
            new = present_key(place)
            if new is not None:
                now = (*path, new)
                self.renamed.append(Renamed(self._origin(place), dotted(place), dotted(now), now, key))
                if new in values:
                    self.problems.append(both_names(self.renamed[-1], self._origin(now)))
            both[new or key] = self.value(inner, place)
        return both

    def _reference(self, match: re.Match[str], path: KeyPath) -> str:
        """A `${...}` that refers to a key by its former name, with the present one."""
        opening, dots, name, closing = match.groups()
        parts = tuple(part for part in re.split(r"[.\[\]]", name) if part)
        around = path[: len(path) - len(dots)] if dots else ()
        target = (*around, *parts)
        now = present_path(target)
        if now == target:
            return match[0]
        self.renamed.append(Renamed(self._origin(path), dotted(target), dotted(now), path))
        return f"{opening}{dots}{dotted(now[len(around) :])}{closing}"

    def _origin(self, path: KeyPath) -> Origin:
        return origin_of(self._origins, path[len(self._root) :]) or Origin("the config")


def both_names(renamed: Renamed, present: Origin) -> str:
    """The problem of a layer with both names of a key; `present` is the origin of the present one."""
    return (
        f"{renamed.origin}: {renamed.old} is the former name of {renamed.new}, which is given too ({present}); leave "
        f"{renamed.former} out"
    )


def restore_own_names(tree: Tree) -> None:
    """Restore, in place, the former name of a key that a plugin's component reads by this name only."""
    for renamed in tree.renamed:
        if renamed.former is not None and _knows_former_only(tree.values, renamed):
            old, new = (*renamed.path[:-1], renamed.former), renamed.path
            mapping = _at(tree.values, new[:-1])
            if isinstance(mapping, dict) and new[-1] in mapping:
                mapping[renamed.former] = mapping.pop(str(new[-1]))
            moved = {path: origin for path, origin in tree.origins.items() if path[: len(new)] == new}
            for path, origin in moved.items():
                del tree.origins[path]
                tree.origins[(*old, *path[len(new) :])] = origin
            tree.renamed = tuple(renaming for renaming in tree.renamed if renaming.path != new)


def _knows_former_only(values: Mapping[str, Any], renamed: Renamed) -> bool:
    for length, (place, registry) in product(range(len(renamed.path) - 1, 0, -1), _REGISTRIES.items()):
        if _matches(tuple(place.split(".")), renamed.path[:length]):
            component = _at(values, renamed.path[:length])
            name = component.get("name") if isinstance(component, dict) else None
            if not isinstance(name, str) or name not in registry.names() or registry.wrong(name) is not None:
                return False
            keys = fields_at(registry.options(name), renamed.path[length:-1])
            return renamed.former in keys and renamed.path[-1] not in keys
    return False


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        if isinstance(values, dict):
            values = values.get(part)
        else:
            values = values[int(part)] if isinstance(values, list) and int(part) < len(values) else None
    return values


def warnings_of(tree: Tree) -> list[str]:
    """One warning for each former name, in the order of the layers.

    A run's own config.yaml, in which every key is written out, has one warning for all of its former names.
    """
    if tree.values.get("resolved") is not True:
        return list(dict.fromkeys(renaming.warning for renaming in tree.renamed))
    by_source: dict[str, list[Renamed]] = defaultdict(list)
    for renaming in tree.renamed:
        by_source[renaming.origin.source].append(renaming)
    return [_warning_of_file(source, names) for source, names in by_source.items()]


def _warning_of_file(source: str, names: list[Renamed]) -> str:
    if len(names) == 1:
        return names[0].warning
    pairs = dict.fromkeys(f"{name.new.rpartition('.')[2]} for {name.old.rpartition('.')[2]}" for name in names)
    return f"{source} has former names, which will go with the next release: {', '.join(pairs)}"

"""Prompts by name: `prompts: NAME` in a module, or beside an agent's name for all its modules.

A name stands for the options of the preset as if they were written in the layer that names it: the module's own options
of that layer and above win, those below lose. The name beside an agent is the agent's, so it also counts for a module
that takes another's slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memfactory.components import DEFAULT_PRESET, PROMPTS, ModuleOptions
from memfactory.config.slots import layer_of, since
from memfactory.config.tree import KeyPath, Origin, leaves, origin_of
from memfactory.errors import unknown
from memfactory.registry import MODULES, Options


@dataclass(frozen=True)
class Preset:
    """A preset's name, the key where it was written, and the layer."""

    name: str
    path: KeyPath
    layer: int


def named_at(values: Mapping[str, Any], path: KeyPath, origins: Mapping[KeyPath, Origin]) -> Preset | None:
    """The preset that the options `values` at `path` name; None if they name none."""
    name, place = values.get(PROMPTS), (*path, PROMPTS)
    return Preset(name, place, layer_of(origins, place)) if isinstance(name, str) else None


def with_preset(
    model: type[Options],
    values: dict[str, Any],
    path: KeyPath,
    of_agent: Preset | None,
    origins: dict[KeyPath, Origin],
) -> dict[str, Any]:
    """A module's options `values` at `path` with the options of its preset written out.

    `of_agent` is the preset that the agent names for all its modules; the module's own name wins unless it stands in a
    lower layer. `origins` gains the place where the name was written for each of the preset's options. An unknown name
    is left to `model`.
    """
    if not issubclass(model, ModuleOptions):
        return values
    preset = named_at(values, path, origins)
    if (
        of_agent is not None
        and of_agent.name in model.preset_names()
        and (preset is None or preset.layer < of_agent.layer)
    ):
        preset = of_agent
    if preset is None or preset.name not in model.preset_names():
        return values
    wording = model.wording_keys()
    own = {
        key: value
        for key, value in values.items()
        if key in wording and not (key == PROMPTS and isinstance(value, str))
    }
    own = since(own, preset.layer, origins, path)
    others = {key: value for key, value in values.items() if key not in wording}
    written = origin_of(origins, preset.path)
    options = model.preset(preset.name, others)
    for key in [other for other in origins if _is_below(other, path, wording) and not _holds(own, other[len(path) :])]:
        del origins[key]
    if written is not None:
        new = (place for place, _ in leaves(dict(options)) if not _holds(own, place))
        origins |= {(*path, *place): written for place in new}
    return {**others, **_over(options, own)}


def _is_below(place: KeyPath, path: KeyPath, keys: frozenset[str]) -> bool:
    return place[: len(path)] == path and len(place) > len(path) and place[len(path)] in keys


def _holds(values: Any, place: KeyPath) -> bool:
    for part in place:
        if not (isinstance(values, dict) and part in values):
            return False
        values = values[part]
    return True


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mappings inside them too."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def misnamed(preset: Preset, modules: Mapping[str, str], later: frozenset[str]) -> tuple[str | None, list[str]]:
    """The reason why no module of an agent can have its `preset` (None: one can), and a warning for each that keeps its
    own prompts.

    `modules` are the names by slot of the modules that name no preset of their own. Those in the slots `later` took the
    slot after the preset was named, so that they make no mistake of it.
    """
    if not modules:
        return None, [f"agent.prompts: {preset.name!r} has no effect: each module names a preset of its own"]
    if preset.name == DEFAULT_PRESET:
        return None, []
    known = {slot for slot, name in modules.items() if preset.name in _names(name)}
    lacking = {slot: name for slot, name in modules.items() if slot not in known and MODULES.get(name).steps}
    if not known and not (lacking and later.issuperset(lacking)):
        existing = {other for name in modules.values() for other in _names(name)}
        nothing = "no module of this agent has presets of prompts"
        return unknown("preset of prompts", preset.name, existing) if existing else nothing, []
    return None, [_warning(preset, slot, name) for slot, name in lacking.items()]


def _warning(preset: Preset, slot: str, module: str) -> str:
    names = ", ".join(_names(module)) or "none"
    return (
        f"agent.prompts: the module {module!r} in the slot {slot!r} has no preset {preset.name!r}, so it keeps its own "
        f"prompts (its presets: {names})"
    )


def names_in(modules: Iterable[str]) -> list[str]:
    """The presets of any of `modules`, `default` first."""
    names = {name for module in modules for name in _names(module)} - {DEFAULT_PRESET}
    return [DEFAULT_PRESET, *sorted(names)]


def _names(module: str) -> tuple[str, ...]:
    options = MODULES.options(module)
    return options.preset_names() if issubclass(options, ModuleOptions) else ()


def presets_by_module() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Every registered module that has presets, with the options that each of them stands for, as plain values."""
    for name in MODULES.names():
        model = MODULES.options(name)
        if issubclass(model, ModuleOptions) and model.preset_names():
            yield name, {preset: model.model_validate({PROMPTS: preset}).worded() for preset in model.preset_names()}

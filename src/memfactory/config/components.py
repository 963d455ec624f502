"""Validation of registered components: the agent with its modules, the environment, the trainer, the datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from memfactory.components import PROMPTS
from memfactory.config.datasets import dataset_title, dataset_values, file_stem
from memfactory.config.losses import named
from memfactory.config.messages import fields_at, holds, sentences, unknown_key
from memfactory.config.problems import Problems, shown
from memfactory.config.prompt_presets import Preset, misnamed, named_at, names_in, with_preset
from memfactory.config.schema import AgentSpec, Component, DataConfig
from memfactory.config.slots import misfit, since, swapped_at
from memfactory.config.training import LoopOptions
from memfactory.config.tree import KeyPath, Named, Origin, moved
from memfactory.errors import ConfigError, unknown
from memfactory.registry import (
    AGENTS,
    DATASETS,
    ENVS,
    MODULES,
    REWARDS,
    TRAINERS,
    Options,
    Registry,
)

O = TypeVar("O", bound=Options)  # noqa: E741


class Checker:
    """Validates the sections of one config into components and notes every problem it finds.

    `parts` are the names of configured parts by section, for messages. Where a value is in another place in the
    resolved config than where it was written, `origins` gains an entry for the new place. `named` are the modules that
    the layers of the config put into slots. `warnings` gains notes on values that count for a part of the config only.
    """

    def __init__(
        self,
        problems: Problems,
        origins: dict[KeyPath, Origin],
        base_dir: Path,
        parts: Mapping[str, list[str]],
        named: Sequence[Named] = (),
    ) -> None:
        self.named = named
        self.problems = problems
        self.origins = origins
        self.base_dir = base_dir
        self.parts = parts
        self.warnings: list[str] = []

    def options(self, model: type[O], values: object, path: KeyPath) -> O | None:
        """`values` as `model`. Wrong values are reported and left out, so that the rest is still checked; None if
        nothing remains."""
        while True:
            try:
                return model.model_validate(values)
            except ValidationError as error:
                wrong = list(sentences(error, model, values))
            except Exception as error:
                if model.__module__.partition(".")[0] == "memfactory":
                    raise
                text = f"{type(error).__name__}: {error}"
                self.problems.add(path, f"the checks of {model.__name__} ({model.__module__}) failed: {text}")
                return None
            for place, message in wrong:
                self.problems.add((*path, *place), message)
            remaining = without(values, [place for place, _ in wrong])
            if remaining is None or remaining == values:
                return None
            values = remaining

    def component(self, registry: Registry[Any], value: object, path: KeyPath) -> Component | None:
        """A registered component from `{name: ..., options...}`."""
        name = self._name(registry, value, path)
        if name is None or not isinstance(value, dict):
            return None
        options = self.options(registry.options(name), {k: v for k, v in value.items() if k != "name"}, path)
        return None if options is None else Component(name, options)

    def _name(self, registry: Registry[Any], value: object, path: KeyPath, default: str | None = None) -> str | None:
        if not isinstance(value, dict):
            self.problems.add(path, f"expected a name or a mapping with `name`; given {shown(value)}")
            return None
        name = value.get("name", default)
        if name is None:
            names = ", ".join(registry.names())
            self.problems.add(path, f"needs `name`: which {registry.kind} it is. There are: {names}")
            return None
        if not isinstance(name, str):
            self.problems.add((*path, "name"), f"expected the name of a {registry.kind}; given {shown(name)}")
            return None
        if name not in registry.names():
            existing = {*registry.names(), *(self.parts.get(str(path[0]), ()) if len(path) == 1 else ())}
            self.problems.add((*path, "name"), unknown(registry.kind, name, existing))
            return None
        wrong = registry.wrong(name)
        if wrong is not None:
            self.problems.add((*path, "name"), wrong)
            return None
        return name

    def agent(self, value: object) -> AgentSpec | None:
        """The agent and its modules. Options of the agent's only module may stand beside the agent's own."""
        path: KeyPath = ("agent",)
        name = self._name(AGENTS, value, path)
        if name is None or not isinstance(value, dict):
            return None
        model = AGENTS.options(name)
        slots: Mapping[str, str] = AGENTS.get(name).slots
        own = {k: v for k, v in value.items() if k in model.model_fields}
        flat = {k: v for k, v in value.items() if k not in model.model_fields and k not in ("name", "modules")}
        preset = named_at(flat, path, self.origins)
        if preset is not None:
            del flat[PROMPTS]
        by_slot = value.get("modules")
        by_slot = {} if by_slot is None else by_slot
        if not isinstance(by_slot, dict):
            self.problems.add((*path, "modules"), f"expected a mapping of slot to module; given {shown(by_slot)}")
            return None
        for slot in by_slot:
            if slot not in slots:
                self.problems.add((*path, "modules", slot), unknown(f"slot of agent {name!r}", slot, slots))
        if len(slots) != 1:
            for key in flat:
                self.problems.add((*path, key), self._unknown_of_agent(key, flat[key], model, _named(by_slot, slots)))
            flat = {}
        modules = {
            slot: self._module(slot, default, by_slot.get(slot), flat, preset) for slot, default in slots.items()
        }
        for slot, module in modules.items():
            wrong = None if module is None else misfit(module.name, AGENTS.get(name), slot)
            if wrong is not None:
                self.problems.add((*path, "modules", slot, "name"), wrong)
        options = self.options(model, own, path)
        valid = {slot: module for slot, module in modules.items() if module is not None}
        if preset is not None and len(valid) == len(slots):
            self._preset_exists(preset, valid, slots, by_slot)
        return None if options is None or len(valid) < len(slots) else AgentSpec(name, options, valid)

    def _unknown_of_agent(self, key: str, value: object, model: type[Options], modules: Iterable[str]) -> str:
        """The message for a key of an agent with several `modules` that has no such option."""
        if key == PROMPTS:
            return (
                f"expected the name of a preset, for all modules ({', '.join(names_in(modules))}); given "
                f"{shown(value)}. Texts of your own stand with their module, under agent.modules"
            )
        return unknown_key(key, [*model.model_fields, PROMPTS, "modules"], model)

    def _preset_exists(
        self, preset: Preset, modules: Mapping[str, Component], slots: Mapping[str, str], written: Mapping[str, object]
    ) -> None:
        """Note an agent's preset that none of its modules has, and warn of modules that lack it."""
        later = {slot for slot, default in slots.items() if swapped_at(self.named, slot, default) > preset.layer}
        named = {
            slot: named_at(module, (*preset.path[:-1], "modules", slot), self.origins)
            for slot, module in written.items()
            if isinstance(module, dict)
        }
        own = {slot for slot, other in named.items() if other is not None and other.layer >= preset.layer}
        names = {slot: module.name for slot, module in modules.items() if slot not in own}
        wrong, warnings = misnamed(preset, names, frozenset(later))
        if wrong is not None:
            self.problems.add(preset.path, wrong)
        self.warnings += warnings

    def _module(
        self, slot: str, default: str, value: object, flat: dict[str, Any], preset: Preset | None
    ) -> Component | None:
        path: KeyPath = ("agent", "modules", slot)
        value = {} if value is None else value
        name = self._name(MODULES, value, path, default)
        if name is None or not isinstance(value, dict):
            return None
        model = MODULES.options(name)
        layer = swapped_at(self.named, slot, default)
        flat, value = since(flat, layer, self.origins, ("agent",)), since(value, layer, self.origins, path)
        for key in [key for key in flat if key not in model.model_fields]:
            self.problems.add(("agent", key), unknown_key(key, [*fields_at(model, ()), "modules"], model))
        nested = {k: v for k, v in value.items() if k != "name"}
        known = {k: v for k, v in flat.items() if k in model.model_fields}
        written = self._overlaid(nested, known, path, ("agent",))
        options = self.options(model, with_preset(model, written, path, preset, self.origins), path)
        return None if options is None else Component(name, options)

    def _overlaid(self, nested: Any, flat: Any, path: KeyPath, flat_path: KeyPath) -> Any:
        """Flat options and those under `modules` as one; of the same option the upper layer's wins."""
        if isinstance(nested, dict) and isinstance(flat, dict):
            merged = dict(nested)
            for key, value in flat.items():
                inner, flat_inner = (*path, key), (*flat_path, key)
                if key in nested:
                    merged[key] = self._overlaid(nested[key], value, inner, flat_inner)
                else:
                    merged[key] = value
                    self._move(flat_inner, inner)
            return merged
        below, above = self.origins.get(path, Origin("")), self.origins.get(flat_path, Origin(""))
        if above.layer > below.layer:
            self._move(flat_path, path)
            return flat
        if above.layer == below.layer and above.line is not None:
            self.problems.add(flat_path, f"is given twice, here and under `modules` ({below})")
        return nested

    def _move(self, source: KeyPath, target: KeyPath) -> None:
        self.problems.moved(source, target)
        self.origins.update(moved(self.origins, source, target))

    def env(self, value: object) -> Component | None:
        """The environment; each of its rewards is checked against that reward's own options."""
        rewards = value.get("rewards") if isinstance(value, dict) else None
        if isinstance(rewards, dict):
            for name, entry in rewards.items():
                self.reward(name, entry, ("env", "rewards", name))
        return self.component(ENVS, value, ("env",))

    def reward(self, name: str, entry: object, path: KeyPath) -> None:
        """One reward: a weight, or a mapping of its options."""
        if name not in REWARDS.names():
            self.problems.add(path, unknown("reward", name, REWARDS.names()))
        elif wrong := REWARDS.wrong(name):
            self.problems.add(path, wrong)
        elif isinstance(entry, dict):
            self.options(REWARDS.options(name), entry, path)
        elif isinstance(entry, bool) or not isinstance(entry, int | float):
            self.problems.add(path, f"expected a weight or a mapping of options; given {shown(entry)}")
        else:
            self.options(REWARDS.options(name), {"weight": entry}, path)

    def train(self, value: object) -> Component | None:
        """The trainer; null is none. The datasets of its stages are checked like those under `data`."""
        if value is None:
            return None
        trainer = self.component(TRAINERS, value, ("train",))
        if trainer is not None and isinstance(trainer.options, LoopOptions):
            for key, dataset in trainer.options.datasets():
                self.dataset(dataset, ("train", *key))
            for key, registry, component in trainer.options.components():
                name, own = named(component)
                self.options(registry.options(name), own, ("train", *key))
        return trainer

    def dataset(self, spec: object, path: KeyPath) -> Component | None:
        """One dataset, in any of the forms that it may be written in."""
        try:
            values = dataset_values(spec, self.base_dir)
        except ValueError as error:
            self.problems.add((*path, "name") if isinstance(spec, dict) and "name" in spec else path, str(error))
            return None
        if isinstance(spec, str) and path in self.origins:
            self.origins |= {(*path, key): self.origins[path] for key in values}
        dataset = self.component(DATASETS, values, path)
        for place, inner in getattr(dataset.options, "inner", tuple)() if dataset else ():
            self.dataset(inner, (*path, *place))
        return dataset

    def data(self, value: object) -> DataConfig | None:
        """The datasets: `eval` is a mapping of names, or a list named by its files."""
        value = {} if value is None else value
        if not isinstance(value, dict):
            self.problems.add(("data",), f"expected a mapping with `train` and `eval`; given {shown(value)}")
            return None
        train = value.get("train")
        training = None if train is None else self.dataset(train, ("data", "train"))
        evaluated = self._eval(value.get("eval"))
        rest = {k: v for k, v in value.items() if k not in ("train", "eval")}
        checked = self.options(DataConfig, rest, ("data",))
        return None if checked is None else checked.model_copy(update={"train": training, "eval": evaluated})

    def _eval(self, value: object) -> dict[str, Component]:
        path: KeyPath = ("data", "eval")
        sets: dict[str, Component] = {}
        if value is None:
            return sets
        entries: list[tuple[str | None, object, KeyPath]]
        if isinstance(value, dict):
            entries = [(name, spec, (*path, name)) for name, spec in value.items()]
        elif isinstance(value, list):
            entries = [(None, spec, (*path, index)) for index, spec in enumerate(value)]
        else:
            entries = [(None, value, path)]
        for name, spec, place in entries:
            dataset = self.dataset(spec, place)
            if dataset is None:
                continue
            title = name or dataset_title({"name": dataset.name, **dataset.options.model_dump()})
            same = next((other for other in sets if file_stem(other) == file_stem(title)), None)
            if title in sets:
                self.problems.add(place, f"two evaluation sets are called {title!r}; write a mapping of names to sets")
            elif same is not None:
                reason = f"{title!r} and {same!r} differ only in punctuation, so their results would share a file"
                self.problems.add(place, f"{reason}; rename one of the two")
            sets[title] = dataset
            self._move(place, (*path, title))
        return sets


def _named(by_slot: Mapping[str, object], slots: Mapping[str, str]) -> list[str]:
    """The modules in the slots of an agent, without those whose names do not exist."""
    written = {slot: module.get("name") for slot, module in by_slot.items() if isinstance(module, dict)}
    names = [written.get(slot) or default for slot, default in slots.items()]
    return [name for name in names if name in MODULES.names()]


def without(values: object, places: Sequence[KeyPath]) -> Any:
    """A copy of `values` without the values at `places`, or without the mapping that lacks a key; None if nothing
    remains."""
    remaining = deepcopy(values)
    return remaining if all(_drop(remaining, place) for place in places) else None


def _drop(values: Any, place: KeyPath) -> bool:
    """Delete the nearest key of a mapping at or around `place`; whether one exists. One that is deleted already
    counts."""
    inside = [values]
    for part in place:
        if not holds(inside[-1], part):
            break
        inside.append(inside[-1][part])
    for depth in range(len(inside) - 1, 0, -1):
        if isinstance(inside[depth - 1], dict):
            del inside[depth - 1][place[depth - 1]]
            return True
    return len(place) > len(inside)


def dataset_component(spec: object, base_dir: Path) -> Component:
    """A dataset in any of the forms that a config may write it in. Raises ConfigError with every problem."""
    origins: dict[KeyPath, Origin] = {}
    problems = Problems(origins, "data")
    component = Checker(problems, origins, base_dir, {}).dataset(spec, ("data",))
    problems.raise_any()
    if component is None:
        raise ConfigError(f"data: {shown(spec)} is not a dataset")
    return component

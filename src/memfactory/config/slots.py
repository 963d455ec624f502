"""Which module each layer of a config puts into a slot, so that options of a module never reach its successor.

A layer is a file, the configs below it, or the command line. An option belongs to the module that was in the slot in
the layer where the option was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memfactory.components import AgentContract, ModuleContract
from memfactory.config.tree import KeyPath, Named, Origin
from memfactory.registry import MODULES


def named_in(agent: object, origins: Mapping[KeyPath, Origin], root: KeyPath = ()) -> tuple[Named, ...]:
    """The modules that one layer's agent names."""
    modules = agent.get("modules") if isinstance(agent, dict) else None
    return tuple(_named(modules, origins, (*root, "modules"))) if isinstance(modules, dict) else ()


def _named(modules: Mapping[str, Any], origins: Mapping[KeyPath, Origin], root: KeyPath) -> Iterator[Named]:
    for slot, module in modules.items():
        name = module.get("name") if isinstance(module, dict) else module
        if isinstance(name, str) or module is None:
            yield Named(slot, name, layer_of(origins, (*root, slot)))


def swapped_at(named: Iterable[Named], slot: str, default: str) -> int:
    """The layer in which the slot's present module took the place of another; -1 if none ever did."""
    present, layer = default, -1
    for module in sorted((module for module in named if module.slot == slot), key=lambda module: module.layer):
        name = module.name or default
        if name != present:
            present, layer = name, module.layer
    return layer


def since(values: Mapping[str, Any], layer: int, origins: Mapping[KeyPath, Origin], path: KeyPath) -> dict[str, Any]:
    """The options out of `values`, at `path`, that were written in `layer` or above it."""
    recent: dict[str, Any] = {}
    for key, value in values.items():
        place = (*path, key)
        if isinstance(value, dict) and value:
            inner = since(value, layer, origins, place)
            if inner:
                recent[key] = inner
        elif layer_of(origins, place) >= layer:
            recent[key] = value
    return recent


def layer_of(origins: Mapping[KeyPath, Origin], path: KeyPath) -> int:
    """The layer in which `path`, or the nearest value around it, was written."""
    near = next((origins[path[:length]] for length in range(len(path), -1, -1) if path[:length] in origins), None)
    return 0 if near is None else near.layer


def needed_roles(agent: type[AgentContract], slot: str) -> tuple[str, ...]:
    """The roles that a module must have to fit the slot; none if neither agent nor default module says."""
    return (agent.needs[slot],) if slot in agent.needs else MODULES.get(agent.slots[slot]).roles


def fits(module: type[ModuleContract], agent: type[AgentContract], slot: str) -> bool:
    """Whether the module can take the slot."""
    return {*needed_roles(agent, slot)} <= {*module.roles}


def misfit(name: str, agent: type[AgentContract], slot: str) -> str | None:
    """Why the module called `name` cannot take the slot, and which can; None if it fits."""
    module = MODULES.get(name)
    if fits(module, agent, slot):
        return None
    needed = " and ".join(map(repr, needed_roles(agent, slot)))
    is_ = f"has the role {' and '.join(map(repr, module.roles))}" if module.roles else "declares no `roles`"
    fitting = ", ".join(other for other in MODULES.names() if fits(MODULES.get(other), agent, slot)) or "(none)"
    return f"module {name!r} {is_}, but this slot needs {needed}. Modules that fit: {fitting}"

"""The places in a config at which a key of some name can stand, with any components."""

from __future__ import annotations

from collections.abc import Iterator

from memfactory.config.messages import places_of
from memfactory.config.schema import RunConfig
from memfactory.config.tree import KeyPath, dotted
from memfactory.registry import AGENTS, ENVS, MODULES, TRAINERS


def keys_called(name: str) -> list[str]:
    """The dotted keys that end with `name`, the shortest first, of equals the trainer's and then the agent's."""
    order = ("train", "agent", "eval", "model")

    def rank(path: KeyPath) -> tuple[int, int, str]:
        section = str(path[0])
        return len(path), order.index(section) if section in order else len(order), dotted(path)

    return list(map(dotted, sorted({*_places(name)}, key=rank)))


def _places(name: str) -> Iterator[KeyPath]:
    if name in RunConfig.model_fields:
        yield (name,)
    yield from places_of(name, RunConfig)
    for section, registry in (("train", TRAINERS), ("env", ENVS), ("agent", AGENTS)):
        for component in registry.names():
            yield from places_of(name, registry.options(component), (section,))
    for agent in AGENTS.names():
        slots = AGENTS.get(agent).slots
        for slot, module in slots.items():
            if module in MODULES.names():
                # The options of an agent's only module may stand beside its own.
                path: KeyPath = ("agent",) if len(slots) == 1 else ("agent", "modules", slot)
                yield from places_of(name, MODULES.options(module), path)

"""The short forms of a config as mappings: `model: tiny` is `model: {path: tiny}`, `engine: vllm` `{kind: vllm}`."""

from __future__ import annotations

from typing import Any

from memfactory.config.tree import KeyPath, Origin, Tree, origin_of

DEFAULT_KINDS: dict[KeyPath, str] = {("engine",): "hf", ("memory", "embedder"): "lexical"}
"""The kind of a component with several kinds for which none is written."""


def chooses_kind(path: KeyPath) -> bool:
    """Whether the value at `path` is one of several kinds, each with options of its own."""
    return path in DEFAULT_KINDS or (len(path) == 2 and path[0] in ("engines", "trackers"))


def is_slot(path: KeyPath) -> bool:
    """Whether `path` is a slot of the agent."""
    return len(path) == 3 and path[:2] == ("agent", "modules")


def short_key(path: KeyPath) -> str | None:
    """The key that a bare text at `path` stands for; None if a text is not a short form."""
    if path == ("model",) or (len(path) == 3 and path[0] == "engines" and path[2] == "model"):
        return "path"
    if chooses_kind(path):
        return "kind"
    is_component = path in (("agent",), ("env",), ("train",), ("data", "train"))
    is_eval = len(path) == 3 and path[:2] == ("data", "eval")
    is_stage = path[:2] == ("train", "stages") and path[3:] == ("data",)
    return "name" if is_component or is_slot(path) or is_eval or is_stage else None


def write_out(tree: Tree) -> Tree:
    """Every short form of `tree` that its sections can have (parts and datasets apart), in place."""
    values = tree.values
    for section in ("model", "engine"):
        if section in values:
            values[section] = _written(tree, values[section], (section,))
    engines: Any = values.get("engines")
    trackers = values.get("trackers")
    if isinstance(engines, dict):
        # null removes an engine of the config below.
        values["engines"] = engines = {name: engine for name, engine in engines.items() if engine is not None}
    for name, engine in engines.items() if isinstance(engines, dict) else ():
        engines[name] = _written(tree, engine, ("engines", name))
        if isinstance(engines[name], dict) and "model" in engines[name] and engines[name].get("kind") != "openai":
            engines[name]["model"] = _written(tree, engines[name]["model"], ("engines", name, "model"))
    if isinstance(trackers, list):
        values["trackers"] = [_written(tree, tracker, ("trackers", i)) for i, tracker in enumerate(trackers)]
    agent = values.get("agent")
    modules: Any = agent.get("modules") if isinstance(agent, dict) else None
    for slot, module in modules.items() if isinstance(modules, dict) else ():
        modules[slot] = _written(tree, module, ("agent", "modules", slot))
    return tree


def _written(tree: Tree, value: Any, path: KeyPath) -> Any:
    key = short_key(path)
    if not isinstance(value, str) or key is None:
        return value
    origin = origin_of(tree.origins, path)
    if origin is not None:
        tree.origins[(*path, key)] = origin
    return {key: value}


def origins_of(value: object, origin: Origin, path: KeyPath = ()) -> dict[KeyPath, Origin]:
    """The origins of `value` and of all values inside it, all written in one place."""
    inside: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    origins = {path: origin}
    for key, inner in inside:
        origins |= origins_of(inner, origin, (*path, key))
    return origins

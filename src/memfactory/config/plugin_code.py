"""Which code a config may run: a user's own plugins, and those of a run that somebody else may have made once they are
trusted. Code of a model (`trust_remote_code`) is never taken from a run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memfactory.config.overrides import on_command_line
from memfactory.config.problems import Problems
from memfactory.config.sources import Source, run_of_file
from memfactory.config.tree import KeyPath, Tree, dotted, origin_of
from memfactory.errors import ConfigError
from memfactory.plugins.loading import Plugin, find_plugin, is_file_name, load_plugin
from memfactory.plugins.trust import trust, trusted
from memfactory.registry import AGENTS, ENVS, MODULES

_NOT_FOR_ANSWERS = ("plugins", "train", "data")
"""Sections of a run that `infer` does not use."""


def load_plugins(
    tree: Tree, source: Source, problems: Problems, *, command: str | None, trusting: bool
) -> tuple[Plugin, ...]:
    """Import the plugins that `tree` names, and return them as they were read; wrong names are reported to
    `problems`.

    Of a run folder, also one whose config is the `base` of a user's own, only those are imported that this user has
    trusted before, or trusts now (`trusting`), and none by `infer` if the run's agent and environment do without.
    Raises ConfigError that lists the plugins that are not trusted.
    """
    names = tree.values.get("plugins")
    if not isinstance(names, list):
        return ()
    run = source.run or _run_below(tree, source)
    foreign = run is not None and not on_command_line(tree, ("plugins",))
    if foreign and command == "infer" and _answers_without(tree.values):
        leave_out_training(tree)
        return ()
    plugins: list[Plugin] = []
    for index, name in enumerate(names):
        if isinstance(name, str):
            try:
                plugins.append(find_plugin(name, source.base_dir, beside=not foreign or is_file_name(name)))
            except ConfigError as error:
                problems.add(("plugins", index), str(error))
    if foreign:
        _refuse_untrusted(plugins, run or Path(), trusting)
    for plugin in plugins:
        try:
            load_plugin(plugin, None if foreign else source.base_dir)
        except ConfigError as error:
            problems.add(("plugins", names.index(plugin.name)), str(error))
    return tuple(plugins)


def _run_below(tree: Tree, source: Source) -> Path | None:
    """The run whose config brings the plugins, if a user's own config is based on it."""
    origin = origin_of(tree.origins, ("plugins",))
    if origin is None or origin.line is None or source.file is None:
        return None
    file = Path(origin.source)
    return None if file.resolve() == source.file.resolve() else run_of_file(file)


def _refuse_untrusted(plugins: Sequence[Plugin], run: Path, trusting: bool) -> None:
    inside = [plugin for plugin in plugins if plugin.source is None and _lies_in(plugin.path, run)]
    if inside:
        raise ConfigError(
            f"{run}: plugins: {inside[0].name!r} is a package inside the run folder, which is never imported; install "
            "it, or name the file"
        )
    known = trusted()
    strange = [plugin for plugin in plugins if plugin.digest not in known]
    if strange and not trusting:
        listed = "".join(f"\n  {plugin.described}" for plugin in strange)
        raise ConfigError(
            f"{run}: this run brings code of its own, which would run as you, and you have not trusted it "
            f"before:{listed}\nRead it, and add --trust if you trust the author of this folder."
        )
    if strange:
        trust({plugin.digest: str(plugin.path or plugin.name) for plugin in strange})


def _lies_in(path: Path | None, folder: Path) -> bool:
    return path is not None and path.resolve().is_relative_to(folder.resolve())


def _answers_without(values: dict[str, Any]) -> bool:
    """Whether a run's agent, its modules and its environment come with MemFactory."""
    agent, env = values.get("agent"), values.get("env")
    modules = agent.get("modules") if isinstance(agent, dict) else None
    if not isinstance(agent, dict) or not isinstance(env, dict) or not isinstance(modules, dict):
        return False
    slots = [module.get("name") for module in modules.values() if isinstance(module, dict)]
    return (
        AGENTS.is_builtin(str(agent.get("name")))
        and ENVS.is_builtin(str(env.get("name")))
        and len(slots) == len(modules)
        and all(MODULES.is_builtin(str(name)) for name in slots)
    )


def leave_out_training(tree: Tree) -> None:
    """Remove settings that only training and evaluation use: they may name components of plugins that are not
    imported."""
    for section in _NOT_FOR_ANSWERS:
        tree.values.pop(section, None)
    tree.values["env"].pop("rewards", None)
    evaluation = tree.values.get("eval")
    for key in ("metrics", "baselines"):
        if isinstance(evaluation, dict):
            evaluation.pop(key, None)


def withhold_remote_code(tree: Tree, source: Source) -> list[str]:
    """Switch off `trust_remote_code` that a run's folder switches on; a warning for each."""
    if source.run is None:
        return []
    warnings = []
    for place, model in _models(tree.values):
        key = (*place, "trust_remote_code")
        if model.get("trust_remote_code") not in (None, False) and not on_command_line(tree, key):
            model["trust_remote_code"] = False
            warnings.append(
                f"{dotted(key)}: {source.shown} switches it on, which no folder may. If you trust the code of that "
                f"model, add {dotted(key)}=true"
            )
    return warnings


def _models(values: dict[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Every mapping that describes a model, with its place."""
    engines = values.get("engines")
    places: list[tuple[KeyPath, object]] = [(("model",), values.get("model"))]
    for name, engine in engines.items() if isinstance(engines, dict) else ():
        places.append((("engines", name, "model"), engine.get("model") if isinstance(engine, dict) else None))
    for place, model in places:
        if isinstance(model, dict):
            yield place, model

"""`memfactory.yaml` in a trained model's folder: the agent that the model was trained as. Plain values, never code.

The file travels with the model, so a copied or published checkpoint is evaluated, run and trained further as the same
agent. Its author may be a stranger: MemFactory resolves no `${...}` in it, imports no plugin that it names, and calls
no endpoint that it names.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.config.datasets import locate
from memfactory.config.interpolation import escape
from memfactory.config.parts import is_file
from memfactory.config.renames import use_present_names
from memfactory.config.tree import KeyPath, Origin, Renamed, Tree, dump, read_file
from memfactory.errors import ConfigError
from memfactory.files.checkpoints import MODULES
from memfactory.model.hub import hub_away
from memfactory.redaction import redacted
from memfactory.registry import REWARDS

AGENT_FILE = "memfactory.yaml"
SECTIONS = ("agent", "env", "memory", "eval")
"""The sections that define an agent and its evaluation."""
MODEL_KEYS = ("path", "dtype", "random_weights", "template_options")
"""The keys of `model` that are saved beside the weights."""
_HEADER = "# The agent that this model was trained as: read by memfactory eval, infer and train. It holds no code.\n"
_NOT_THE_AGENT = ("interface", "engine", "weights")
"""Options of a module that leave its prompts as they are."""


@dataclass(frozen=True)
class AgentFile:
    """A folder's memfactory.yaml: its sections out of SECTIONS, its keys of `model`, and the names of the plugins that
    the model was trained with, which are never imported from here."""

    shown: str
    sections: Mapping[str, Any]
    model: Mapping[str, Any]
    plugins: tuple[str, ...]
    renamed: tuple[Renamed, ...] = ()

    def tree(self, names: tuple[str, ...] = SECTIONS) -> Tree:
        """The sections called `names` as part of a config, each with this file as its origin.

        An embedder at an endpoint is left out, and so is the folder of cached vectors.
        """
        values = {name: deepcopy(self.sections[name]) for name in names if name in self.sections}
        if "memory" in values:
            values["memory"].pop("cache", None)
            if self.endpoint is not None:
                del values["memory"]["embedder"]
        origins: dict[KeyPath, Origin] = {(name,): Origin(self.shown) for name in values}
        return Tree(
            escape(values),
            origins,
            renamed=tuple(renaming for renaming in self.renamed if renaming.path[:1] in origins),
        )

    @property
    def endpoint(self) -> str | None:
        """The endpoint that embeds texts; None if the file names none."""
        embedder = self.sections.get("memory", {}).get("embedder")
        if not isinstance(embedder, Mapping) or embedder.get("kind") != "openai":
            return None
        return f"{embedder.get('model')} at {embedder.get('base_url') or 'the default address'}"


def write_agent_file(folder: Path, values: Mapping[str, Any], base_dir: Path) -> None:
    """Write memfactory.yaml to `folder`, from the plain values of a whole config.

    The weights that a module learned (`weights`) are copied beside it. Engines, and rewards that call a model, are left
    out: the config that uses the model names its own.
    """
    agent = deepcopy(values["agent"])
    for slot, module in agent.get("modules", {}).items():
        learnt = module.pop("weights", None)
        source = locate(learnt, base_dir) if isinstance(learnt, str) else None
        target = folder / MODULES / f"{slot}.safetensors"
        if source is not None and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    env = dict(values["env"])
    if isinstance(env.get("rewards"), dict):
        env["rewards"] = {name: entry for name, entry in env["rewards"].items() if not _asks_a_model(name)}
    is_local = values["engine"]["kind"] != "openai"
    noted = {
        "model": {key: values["model"][key] for key in MODEL_KEYS} if is_local else {},
        "agent": agent,
        "env": env,
        "memory": {key: value for key, value in values["memory"].items() if key != "cache"},
        "eval": values["eval"],
        # A published file tells nothing about the folders of this machine.
        "plugins": [Path(name).name if name.endswith(".py") else name for name in values["plugins"]],
    }
    (folder / AGENT_FILE).write_text(redacted(_HEADER + dump(noted)), encoding="utf-8")


def read_agent_file(folder: Path) -> AgentFile | None:
    """The memfactory.yaml of `folder`; None if it has none.

    Raises ConfigError for a file that cannot be read or is of another shape.
    """
    path = folder / AGENT_FILE
    return _read(path, str(path)) if is_file(path) else None


def published_agent_file(repository: str) -> AgentFile | None:
    """The memfactory.yaml of a model on the hub; None if it has none or the hub cannot be reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = hf_hub_download(repository, AGENT_FILE, local_files_only=hub_away() is not None)
    except (EntryNotFoundError, OSError, ValueError):
        # Loading the model reports an unreachable hub.
        return None
    return _read(Path(path), f"{repository}/{AGENT_FILE}")


def _read(path: Path, shown: str) -> AgentFile:
    tree = use_present_names(read_file(path, shown))
    values = tree.values
    known = (*SECTIONS, "model", "plugins")
    if strange := [key for key in values if key not in known]:
        raise ConfigError(f"{shown}: {strange[0]}: no such section here. There are: {', '.join(known)}")
    model, plugins = values.get("model", {}), values.get("plugins", [])
    if any(not isinstance(values.get(name, {}), dict) for name in (*SECTIONS, "model")):
        raise ConfigError(f"{shown}: expected a mapping under each of: {', '.join((*SECTIONS, 'model'))}")
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise ConfigError(f"{shown}: plugins: expected a list of names")
    return AgentFile(
        shown=shown,
        sections={name: values[name] for name in SECTIONS if name in values},
        model={key: value for key, value in model.items() if key in MODEL_KEYS},
        plugins=tuple(plugins),
        renamed=tree.renamed,
    )


def unlike(agent: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """The keys in which two agents, as plain values, differ, each with both values.

    The engine and the interface of a module do not count.
    """
    if agent.get("name") != other.get("name"):
        return {"agent.name": (agent.get("name"), other.get("name"))}
    one, two = (flattened(values, "agent", without=_NOT_THE_AGENT) for values in (agent, other))
    return {key: (one[key], two[key]) for key in one if key in two and one[key] != two[key]}


def flattened(value: object, key: str, *, without: Collection[str] = ()) -> dict[str, object]:
    """Every value inside `value`, which stands at `key`, by its dotted key, except for the keys in `without`."""
    if not isinstance(value, Mapping):
        return {key: value}
    flat: dict[str, object] = {}
    for name, inner in value.items():
        if name not in without:
            flat |= flattened(inner, f"{key}.{name}", without=without)
    return flat


def _asks_a_model(reward: str) -> bool:
    return reward in REWARDS.names() and bool(REWARDS.get(reward).asks_a_model)

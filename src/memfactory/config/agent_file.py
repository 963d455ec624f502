"""`memfactory.yaml`: what a trained model's folder says of the agent it was trained as. Plain values, never code.

It goes where the model goes, so that a copied or published checkpoint is evaluated, run and trained further as the same
agent. Whoever wrote it may be a stranger: no `${...}` in it is filled in, no plugin that it names is imported, and no
endpoint that it names is asked.
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
from memfactory.redaction import redacted
from memfactory.registry import REWARDS

AGENT_FILE = "memfactory.yaml"
SECTIONS = ("agent", "env", "memory", "eval")
"""The sections that say what an agent is and how it is evaluated."""
MODEL_KEYS = ("path", "dtype", "random_weights", "template_options")
"""What is noted of the model beside its weights."""
MODULES = "modules"
"""The folder with what modules have learnt by themselves."""
_HEADER = "# The agent that this model was trained as: read by memfactory eval, infer and train. It holds no code.\n"
_NOT_THE_AGENT = ("interface", "engine", "weights")
"""Options of a module that say how it is played, and not what it asks."""


@dataclass(frozen=True)
class AgentFile:
    """A folder's memfactory.yaml. `sections` holds those of SECTIONS that it has, `model` what it notes of the model,
    `plugins` the names of the code that it was trained with, which is never imported from here."""

    shown: str
    sections: Mapping[str, Any]
    model: Mapping[str, Any]
    plugins: tuple[str, ...]
    renamed: tuple[Renamed, ...] = ()

    def tree(self, names: tuple[str, ...] = SECTIONS) -> Tree:
        """The sections called `names` as part of a config, each with this file as its origin.

        An embedder at an endpoint is not among them, nor a folder where vectors are kept.
        """
        values = {name: deepcopy(self.sections[name]) for name in names if name in self.sections}
        if "memory" in values:
            values["memory"].pop("cache", None)
            if self.endpoint is not None:
                del values["memory"]["embedder"]
        origins: dict[KeyPath, Origin] = {(name,): Origin(self.shown) for name in values}
        return Tree(escape(values), origins, renamed=tuple(one for one in self.renamed if one.path[:1] in origins))

    @property
    def endpoint(self) -> str | None:
        """The endpoint that it would have embed texts; None where it names none."""
        embedder = self.sections.get("memory", {}).get("embedder")
        if not isinstance(embedder, Mapping) or embedder.get("kind") != "openai":
            return None
        return f"{embedder.get('model')} at {embedder.get('base_url') or 'the default address'}"


def write_agent_file(folder: Path, values: Mapping[str, Any], base_dir: Path) -> None:
    """Write memfactory.yaml to `folder`, from the plain values of a whole config.

    What a module has learnt elsewhere (`weights`) is copied beside it. Rewards that ask a model are left out, and so
    are engines: whom to ask is said where the model is used.
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
    spoken = values["engine"]["kind"] != "openai"
    noted = {
        "model": {key: values["model"][key] for key in MODEL_KEYS} if spoken else {},
        "agent": agent,
        "env": env,
        "memory": {key: value for key, value in values["memory"].items() if key != "cache"},
        "eval": values["eval"],
        # Where they lie on this machine is nobody's business.
        "plugins": [Path(name).name if name.endswith(".py") else name for name in values["plugins"]],
    }
    (folder / AGENT_FILE).write_text(redacted(_HEADER + dump(noted)), encoding="utf-8")


def read_agent_file(folder: Path) -> AgentFile | None:
    """What memfactory.yaml in `folder` says; None where there is none.

    Raises ConfigError for a file that cannot be read or is of another shape.
    """
    path = folder / AGENT_FILE
    return _read(path, str(path)) if is_file(path) else None


def published_agent_file(repository: str) -> AgentFile | None:
    """What memfactory.yaml of a model on the hub says; None where it has none or the hub is not reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = hf_hub_download(repository, AGENT_FILE)
    except (EntryNotFoundError, OSError, ValueError):
        # A model that cannot be fetched either is told of when it is loaded.
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
    """What two agents, as plain values, ask otherwise: each key that both have with its two values.

    Who speaks and what is trained makes no other agent.
    """
    if agent.get("name") != other.get("name"):
        return {"agent.name": (agent.get("name"), other.get("name"))}
    one, two = (flattened(values, "agent", without=_NOT_THE_AGENT) for values in (agent, other))
    return {key: (one[key], two[key]) for key in one if key in two and one[key] != two[key]}


def flattened(value: object, key: str, *, without: Collection[str] = ()) -> dict[str, object]:
    """Every value inside `value`, which stands at `key`, by its dotted key, but for keys called as in `without`."""
    if not isinstance(value, Mapping):
        return {key: value}
    found: dict[str, object] = {}
    for name, inner in value.items():
        if name not in without:
            found |= flattened(inner, f"{key}.{name}", without=without)
    return found


def _asks_a_model(reward: str) -> bool:
    return reward in REWARDS.names() and bool(REWARDS.get(reward).asks_a_model)

"""The config of a model by itself: the agent of its memfactory.yaml, the run or config beside it, or the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfactory.config.agent_file import AgentFile, published_agent_file, read_agent_file, unlike
from memfactory.config.datasets import anchored
from memfactory.config.interpolation import escape
from memfactory.config.overrides import Override
from memfactory.config.parts import expand_sections, is_dir, merge
from memfactory.config.problems import Problems, shown
from memfactory.config.short_forms import origins_of
from memfactory.config.slots import named_in
from memfactory.config.sources import HUB_ID, Source
from memfactory.config.tree import Origin, Tree
from memfactory.files.places import expanded
from memfactory.model.gguf_file import is_gguf

DEFAULTS: Mapping[str, Any] = {"agent": "memory_agent", "env": "longcontext"}
_OF_THE_RUN = ("resolved", "train", "output")
"""Keys that a model does not take from the config that it is run like."""
_OF_THE_MODEL = ("path", "adapter", "random_weights", "trust_remote_code")
"""Keys that name the model and the rights of its code: never taken from another's config."""
_NOTED = ("dtype", "template_options")
_THE_AGENTS = ("agent", "memory")
"""Sections of a model's memfactory.yaml that count even if data and settings come from a config beside it."""
_LOCAL_ENGINES = ("hf", "vllm", "auto")


@dataclass(frozen=True)
class Like:
    """The plain values of a config, called `name`, that a model is run like. `strictly`: the agent is its too, where
    the model has a memfactory.yaml of its own."""

    name: str
    values: Mapping[str, Any]
    strictly: bool


def tree_of_model(source: Source, like: Like | None, folders: list[Path]) -> Tree:
    """The config of a model by itself, before any override."""
    tree = Tree() if like is None else _likened(like, "model" in source.values)
    own = source.agent
    if own is not None and (like is None or not like.strictly):
        taken = own.tree() if like is None else own.tree(_THE_AGENTS)
        tree = Tree({**tree.values, **taken.values}, {**tree.origins, **taken.origins}, renamed=taken.renamed)
        if like is None and own.model:
            tree.values["model"] = {key: own.model[key] for key in _NOTED if key in own.model}
    for section, name in DEFAULTS.items():
        tree.values.setdefault(section, name)
    # Mappings are whole; only the defaults are names of parts.
    tree.values["resolved"] = True
    expand_sections(tree, folders)
    return merge(tree, Tree(source.values, origins_of(source.values, Origin(source.shown))))


def _likened(like: Like, has_model: bool) -> Tree:
    """The settings that a model takes from `like`, its engine too if only modules were trained (no `has_model`)."""
    values = {name: value for name, value in like.values.items() if name not in _OF_THE_RUN}
    if not has_model:
        return Tree(escape(values), {(name,): Origin(like.name) for name in values})
    values["model"] = {key: value for key, value in values["model"].items() if key not in _OF_THE_MODEL}
    if values["engine"]["kind"] not in _LOCAL_ENGINES:
        # An endpoint or a server answers with a model of its own.
        del values["engine"]
    return Tree(escape(values), {(name,): Origin(like.name) for name in values})


def fill_in_agent(tree: Tree, overrides: Sequence[Override], base_dir: Path) -> AgentFile | None:
    """Fill in the agent of a config that names none from the memfactory.yaml of the model it names; returns that
    file."""
    named = "agent" in tree.values or any(override.path == ("agent",) for override in overrides)
    for place in _model_folders(tree, overrides):
        folder = expanded(anchored(place, base_dir))
        if is_dir(folder):
            agent_file = read_agent_file(folder)
        else:
            # The hub is asked only if the config names no agent.
            asks = HUB_ID.fullmatch(place) and not is_gguf(place) and not named
            agent_file = published_agent_file(place) if asks else None
        if agent_file is not None:
            names = tuple(name for name in _THE_AGENTS if name not in tree.values)
            taken = agent_file.tree(names)
            tree.values.update(taken.values)
            tree.origins.update(taken.origins)
            tree.renamed += taken.renamed
            if "agent" in taken.values:
                tree.named = named_in(tree.values["agent"], tree.origins, ("agent",))
            return agent_file
    return None


def _model_folders(tree: Tree, overrides: Sequence[Override]) -> list[str]:
    """The adapter and the model that the config and its overrides name as plain text."""
    written = tree.values.get("model")
    model: dict[str, Any] = dict(written) if isinstance(written, dict) else {"path": written}
    for override in overrides:
        if override.path == ("model",):
            model = dict(override.value) if isinstance(override.value, dict) else {"path": override.value}
        elif len(override.path) == 2 and override.path[0] == "model":
            model[override.path[1]] = override.value
    return [place for place in (model.get("adapter"), model.get("path")) if isinstance(place, str)]


def note_withheld(agent_file: AgentFile, tree: Tree, problems: Problems) -> None:
    """Report the code and endpoints that memfactory.yaml names, that the agent needs, and that no folder may choose."""
    memory = tree.values.get("memory")
    taken = tree.origins.get(("memory",)) == Origin(agent_file.shown)
    if agent_file.endpoint is not None and taken and not (isinstance(memory, dict) and memory.get("embedder")):
        problems.add(
            ("memory", "embedder"),
            f"the agent embeds texts with an endpoint ({agent_file.endpoint}). A model's folder may not choose where "
            "your texts and key go; name an endpoint: memory.embedder='{kind: openai, model: MODEL, base_url: URL}'",
        )
    if not {"model", "engine"} & {*tree.values}:
        problems.add(
            ("engine",),
            f"the agent of {agent_file.shown} ran on an endpoint, which a model's folder may not choose; name "
            "one, such as engine='{kind: openai, model: MODEL, base_url: URL}', or evaluate it --like its run",
        )
    if problems and agent_file.plugins and not tree.values.get("plugins"):
        names = ", ".join(agent_file.plugins)
        problems.add(
            ("plugins",),
            f"the model was trained with plugins ({names}). No code runs because a model's folder names it; if you "
            f"have these plugins and trust them, add plugins='[{names}]'",
        )


def of_another_agent(agent: Mapping[str, Any], agent_file: AgentFile) -> list[str]:
    """A warning if a config's agent, as plain values, differs from the agent that its model was trained as."""
    different = unlike(agent, agent_file.sections.get("agent", {}))
    if not different:
        return []
    listed = [f"{key}={shown(here)} (there {shown(there)})" for key, (here, there) in list(different.items())[:4]]
    more = f" and {len(different) - 4} more" if len(different) > 4 else ""
    return [f"the model was trained as another agent, says {agent_file.shown}: here {', '.join(listed)}{more}"]

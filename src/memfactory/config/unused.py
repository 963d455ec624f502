"""Sections that a trainer does not use and a config may therefore leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memfactory.config.model_sources import DEFAULTS
from memfactory.config.parts import expand_sections, merge
from memfactory.config.short_forms import write_out
from memfactory.config.trained import options_of_trainer
from memfactory.config.tree import Origin, Tree


def with_unused(tree: Tree, folders: list[Path]) -> Tree:
    """The tree with the agent and the environment of a bare model if its trainer plays no agent and names none.

    The trained model is later asked through them. Evaluation plays an agent at once, so with held-out sets both must be
    written.
    """
    train, data = tree.values.get("train"), tree.values.get("data")
    options = options_of_trainer(train.get("name")) if isinstance(train, dict) else None
    if options is None or options.plays or (isinstance(data, dict) and data.get("eval")):
        return tree
    missing: dict[str, Any] = {section: name for section, name in DEFAULTS.items() if tree.values.get(section) is None}
    origin = Origin("the default of a trainer that plays no agent")
    below = Tree(dict(missing), {(section,): origin for section in missing})
    expand_sections(below, folders)
    tree.values = {section: value for section, value in tree.values.items() if section not in missing}
    return merge(write_out(below), tree)

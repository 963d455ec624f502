"""From the arguments of the Python API to a validated configuration."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from memfactory.config import Resolved, load_config
from memfactory.errors import ConfigError

log = logging.getLogger("memfactory")
Source = str | Path | Mapping[str, object]
"""A YAML file, a shipped config's name, a run folder, a checkpoint, a model (folder, GGUF file, `tiny`), a mapping."""
Overrides = str | Mapping[str, object]
"""`"train.steps=3"` as on the command line, or `{"train.steps": 3}`."""
_DICT_FILE = "config_from_python"


def resolved_config(
    source: Source, overrides: Sequence[Overrides], command: str | None, *, trust: bool = False
) -> Resolved:
    """The configuration that `source` and `overrides` describe, validated for `command` (train, eval, infer or traces).

    Warnings about it are logged. Raises ConfigError with every problem.
    """
    texts = override_texts(overrides)
    if isinstance(source, Mapping):
        resolved = _from_mapping(source, texts, command, trust=trust)
    else:
        resolved = load_config(source, texts, command=command, trust=trust)
    log_warnings(resolved)
    if command is not None:
        # Without a command the configuration is for no machine yet.
        log_choices(resolved)
    return resolved


def log_choices(resolved: Resolved) -> None:
    """Log the engines that `auto` stands for on this machine."""
    for choice in resolved.choices:
        log.info("%s", choice)


def log_warnings(resolved: Resolved) -> None:
    """Log the warnings about the configuration."""
    for warning in resolved.warnings:
        log.warning("%s", warning)


def override_texts(overrides: Sequence[Overrides]) -> list[str]:
    """Overrides as the command line writes them.

    >>> override_texts(["seed=1", {"train.steps": 3, "model.path": "tiny"}])
    ['seed=1', 'train.steps=3', 'model.path="tiny"']
    """
    texts: list[str] = []
    for override in overrides:
        if isinstance(override, str):
            texts.append(override)
        elif not isinstance(override, Mapping):
            raise ConfigError(
                f"an override is a text such as 'train.steps=3' or a mapping, not {type(override).__name__}"
            )
        else:
            texts += [f"{key}={json.dumps(value, default=str)}" for key, value in override.items()]
    return texts


def _from_mapping(values: Mapping[str, object], overrides: list[str], command: str | None, *, trust: bool) -> Resolved:
    """The configuration that a mapping holds. Its relative paths start at the working directory."""
    with tempfile.TemporaryDirectory(prefix="memfactory-") as folder:
        path = Path(folder) / _DICT_FILE
        path.write_text(yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False), encoding="utf-8")
        try:
            resolved = load_config(path, overrides, command=command, trust=trust)
        except ConfigError as error:
            raise ConfigError([_without_file(problem) for problem in error.problems]) from None
    warnings = tuple(_without_file(warning) for warning in resolved.warnings)
    return replace(resolved, source=None, base_dir=Path.cwd(), name="run", warnings=warnings)


def _without_file(message: str) -> str:
    """A message about the temporary file as one about the mapping that the user wrote."""
    return re.sub(rf"\S*{re.escape(_DICT_FILE)}(?::\d+)*", "config", message)

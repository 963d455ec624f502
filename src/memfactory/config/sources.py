"""The sources of a config: a YAML file, a run folder, one of its checkpoints, a model folder, a model's name."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memfactory.config.agent_file import AGENT_FILE, AgentFile, published_agent_file, read_agent_file
from memfactory.config.parts import SUFFIXES, config_folders, is_dir, is_file, runnable_configs, show_path
from memfactory.errors import ConfigError, nearest, unknown
from memfactory.files.checkpoints import MODULES, SHARDS, TRAINING_ONLY, newest_intact
from memfactory.files.folders import check_folder
from memfactory.files.places import expanded
from memfactory.model.gguf_file import gguf_instead, gguf_problem, is_gguf
from memfactory.model.near_models import is_model, model_hint, nearest_place
from memfactory.model.packaged import KNOWN

log = logging.getLogger("memfactory")
RUN_CONFIG = "config.yaml"
_NO_MODEL = f"it has neither config.json nor adapter_config.json, nor {MODULES}/ beside a {AGENT_FILE}"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""The form of a hub model's id."""


@dataclass(frozen=True)
class Source:
    """Where a config comes from. `values` are laid over the file's, or stand alone.

    `run` is the run folder that the file belongs to, `file` None if the source is a model by itself; `agent` is then
    its memfactory.yaml, if it has one. `note` is a warning for the user.
    """

    name: str
    shown: str
    file: Path | None
    base_dir: Path
    values: dict[str, Any]
    run: Path | None = None
    agent: AgentFile | None = None
    note: str | None = None


def find_source(source: str | Path, *, trained: bool) -> Source:
    """The source that `source` names. With `trained`, a run folder stands for its trained model, else for its config
    alone.

    Raises ConfigError when it names nothing, with the nearest config.
    """
    text, path = str(source), Path(source)
    if path.suffix not in SUFFIXES and is_gguf(path):
        problem = gguf_problem(expanded(path))
        if problem is not None:
            raise ConfigError(problem)
        return _model(path.stem, {"path": text, "adapter": None, "random_weights": False})
    if is_file(path):
        # The folder of the file behind a link counts, not the link's own.
        file = path.resolve() if path.is_symlink() else path
        written = [place.parent for place in (path, file) if place.name == RUN_CONFIG and _is_run(place.parent)]
        run = written[0] if written else None
        return Source(path.stem if run is None else run.name, text, file, run or file.parent, {}, run)
    if is_dir(path):
        return _folder(path, trained)
    if text == "tiny":
        return _model("tiny", {"path": "tiny"})
    known = runnable_configs(config_folders(None))
    if path.stem in known and (text == path.stem or (path.suffix in SUFFIXES and path.parent.name == "configs")):
        return find_source(known[path.stem], trained=trained)
    if HUB_ID.fullmatch(text) and path.suffix not in SUFFIXES and not is_dir(path.parent):
        agent = published_agent_file(text) if trained else None
        return replace(_model(text.replace("/", "-"), {"path": text}), agent=agent)
    raise ConfigError(f"{text}: there is no such config file, run folder or model folder; {_instead(text, known)}")


def _instead(text: str, known: Mapping[str, Path]) -> str:
    """The nearest source to `text`, which names none; `known` are the configs by their names."""
    path = Path(text)
    here = nearest_place(text, Path(), _is_source)
    beside = None if here is None else Path(here).stem
    names = {*known, "tiny"}
    is_config = path.suffix in SUFFIXES or "/" not in text
    if here is not None and (not is_config or nearest(path.stem, {*names, beside or ""}) == beside):
        return f"did you mean {here!r}?"
    if is_config and (path.suffix in SUFFIXES or path.stem.lower() not in KNOWN):
        return unknown("config", path.stem, names)
    return f"{model_hint(text)}; `memfactory list configs` shows the configs"


def _is_source(place: Path) -> bool:
    return is_model(place) or _is_run(place) or (place.suffix in SUFFIXES and place.is_file())


def _model(name: str, values: dict[str, Any]) -> Source:
    return Source(name, name, None, Path("."), {"model": values})


def _folder(folder: Path, trained: bool) -> Source:
    if _is_run(folder):
        source = Source(folder.resolve().name, show_path(folder / RUN_CONFIG), folder / RUN_CONFIG, folder, {}, folder)
        if not trained:
            return source
        newest, values = _of_run(folder)
        note = None if newest.name == "final" else f"{folder} has no final/: its checkpoint {newest.name} is taken"
        return replace(source, values=values, note=note)
    model, learnt = _weights(folder), _learnt(folder)
    run = _run_around(folder)
    if run is not None and is_dir(folder / SHARDS):
        raise _shards(run, folder)
    if run is not None and learnt is not None:
        name = f"{run.name}-{folder.resolve().name}"
        return Source(name, show_path(run / RUN_CONFIG), run / RUN_CONFIG, run, learnt, run)
    agent = read_agent_file(folder)
    noted = {} if agent is None else dict(agent.model)
    if model is None and (learnt is None or agent is None):
        raise ConfigError(
            f"{folder}: this folder is not a run (it has no {RUN_CONFIG}), a checkpoint or a model "
            f"({gguf_instead(folder) or _NO_MODEL})"
        )
    if model is None:
        # Only modules were trained; the model comes from elsewhere, or is an endpoint's.
        model = {"path": noted["path"]} if "path" in noted else {}
    elif model.get("path") is None:
        base = noted.get("path") or _base_of(folder)
        if base is None:
            raise ConfigError(f"{folder}: adapter_config.json does not say which model the adapter belongs to")
        random = {"random_weights": noted["random_weights"]} if "random_weights" in noted else {}
        model = {"path": base, **model, **random}
    source = _model(folder.resolve().name, model)
    source = source if model else replace(source, values={})
    modules = {} if learnt is None or "agent" not in learnt else {"agent": learnt["agent"]}
    return replace(source, values={**source.values, **modules}, agent=agent)


def _run_around(folder: Path) -> Path | None:
    """The run that wrote `folder`; None for a folder with an agent of its own that somebody put into a run."""
    place = folder.resolve()
    run = next((parent for parent in list(place.parents)[:2] if _is_run(parent)), None)
    if run is None or place == run / "final" or place.parent == run / "checkpoints":
        return run
    return None if is_file(folder / AGENT_FILE) else run


def run_of_file(file: Path) -> Path | None:
    """The run folder around `file`, or around the target of a link of that name; None without one."""
    return next((place.parent for place in (file, file.resolve()) if _is_run(place.parent)), None)


def _is_run(folder: Path) -> bool:
    """Whether `folder` is a run's: a written config beside the outputs of a run."""
    return is_file(folder / RUN_CONFIG) and (
        is_file(folder / "environment.json") or is_file(folder / "metrics.jsonl") or is_dir(folder / "checkpoints")
    )


def _of_run(run: Path) -> tuple[Path, dict[str, Any]]:
    """The newest weights of a run, those of final/ or else of its last whole checkpoint, and their values."""
    learnt = _learnt(run / "final") if is_dir(run / "final") else None
    if learnt is not None:
        return run / "final", learnt
    if is_dir(run / "final"):
        # A final/ without a model: check_folder raises if files are missing or damaged.
        check_folder(run / "final")
    newest, wrong = newest_intact(run / "checkpoints", ignore=TRAINING_ONLY)
    for reason in wrong:
        log.warning("%s", reason)
    learnt = None if newest is None else _learnt(newest)
    if newest is not None and learnt is not None:
        return newest, learnt
    if newest is not None:
        raise _shards(run, newest)
    raise ConfigError(
        f"{run}: this run has neither final/ nor a checkpoint yet. Its untrained model is {run / RUN_CONFIG}"
    )


def _shards(run: Path, checkpoint: Path) -> ConfigError:
    """The error for a checkpoint of a sharded model, which is no model yet."""
    steps = checkpoint.name.rpartition("-")[2]
    return ConfigError(
        f"{checkpoint}: it holds the shards of several processes, not a model. `memfactory train {run} --resume "
        f"{checkpoint} train.steps={steps}` writes its model to {run / 'final'}"
    )


def _learnt(folder: Path) -> dict[str, Any] | None:
    """The values that point at the outputs of a run in `folder`: its model, and the weights that modules learned.

    None without either. The run's config gives the rest.
    """
    model, modules = _weights(folder), folder / MODULES
    weights = {path.stem: {"weights": str(path)} for path in sorted(modules.glob("*.safetensors"))}
    if model is None and not is_dir(modules):
        return None
    return {**({"model": model} if model else {}), **({"agent": {"modules": weights}} if weights else {})}


def _weights(folder: Path) -> dict[str, Any] | None:
    """The `model:` values that point at the model in `folder`; None without one."""
    if is_file(folder / "adapter_config.json"):
        return {"adapter": str(folder)}
    if is_file(folder / "config.json"):
        return {"path": str(folder), "adapter": None, "random_weights": False}
    return None


def _base_of(folder: Path) -> str | None:
    try:
        described = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{folder / 'adapter_config.json'}: cannot be read: {error}") from None
    base = described.get("base_model_name_or_path") if isinstance(described, dict) else None
    return base if isinstance(base, str) and base else None

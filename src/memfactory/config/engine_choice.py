"""The engine that `engine: auto` stands for on this machine. Nothing heavy is imported."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from memfactory.config.readiness import installed, on_gpu
from memfactory.config.schema import RunConfig
from memfactory.config.tree import KeyPath, dotted
from memfactory.engines.options import AutoEngineConfig, EngineConfig, HfEngineConfig, VllmEngineConfig
from memfactory.engines.vllm.checks import FIRST_GPU, OLDEST, as_version, dotted_version
from memfactory.environment import process_count
from memfactory.files.assets import asset
from memfactory.files.places import expanded
from memfactory.model.gguf_file import is_gguf
from memfactory.model.options import ModelConfig

_REGISTRY = Path("model_executor", "models", "registry.py")


@dataclass(frozen=True)
class EngineChoice:
    """The engine at `place` that is written as `auto`, the kind that it stands for here, and why."""

    place: KeyPath
    auto: AutoEngineConfig
    engine: HfEngineConfig | VllmEngineConfig
    reason: str

    def __str__(self) -> str:
        return f"{dotted(self.place)}: auto takes {self.engine.kind}, because {self.reason}"


def choose_engines(config: RunConfig) -> tuple[RunConfig, tuple[EngineChoice, ...]]:
    """The configuration with an engine of its own kind in each place of `auto`, and the choices."""
    choices = tuple(_choices(config))
    return _with_engines(config, {choice.place: choice.engine for choice in choices}), choices


def as_written(config: RunConfig, choices: Sequence[EngineChoice]) -> RunConfig:
    """The configuration with `auto` back in the place of each choice."""
    return _with_engines(config, {choice.place: choice.auto for choice in choices})


def with_hf(config: RunConfig, choices: Sequence[EngineChoice]) -> RunConfig:
    """The configuration with the engine hf in the place of each choice."""
    return _with_engines(config, {choice.place: choice.auto.hf() for choice in choices})


def _with_engines(config: RunConfig, engines: dict[KeyPath, EngineConfig]) -> RunConfig:
    if not engines:
        return config
    named = {name: engines.get(("engines", name), engine) for name, engine in config.engines.items()}
    return config.model_copy(update={"engine": engines.get(("engine",), config.engine), "engines": named})


def _choices(config: RunConfig) -> Iterator[EngineChoice]:
    places: dict[KeyPath, EngineConfig] = {("engine",): config.engine}
    places |= {("engines", name): engine for name, engine in config.engines.items()}
    for place, engine in places.items():
        if isinstance(engine, AutoEngineConfig):
            obstacle = vllm_obstacle(config.model)
            if obstacle is None:
                yield EngineChoice(place, engine, engine.vllm(), "vLLM is installed and there is a CUDA GPU")
            else:
                yield EngineChoice(place, engine, engine.hf(), obstacle)


def vllm_obstacle(model: ModelConfig) -> str | None:
    """The reason why vLLM cannot serve `model` here; None if nothing speaks against it."""
    if not on_gpu(model):
        return "no CUDA GPU is used here"
    if model.device not in FIRST_GPU:
        return f"vLLM takes the first GPU that it sees, not model.device {model.device!r}"
    if not installed("vllm"):
        return "vLLM is not installed (pip install 'memfactory[vllm]')"
    version = _version()
    if version is not None and as_version(version) < OLDEST:
        return f"vllm {version} is older than {dotted_version(OLDEST)}"
    if process_count() > 1:
        return f"the run has {process_count()} processes and vLLM serves one"
    if is_gguf(model.path):
        return "model.path is a GGUF file"
    architecture = _architecture(model.path)
    if architecture is not None and not _lists(architecture):
        return f"this vLLM does not list the architecture {architecture}"
    return None


def _version() -> str | None:
    """The installed version of vLLM; None for a build under another name."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return None


def _architecture(path: str) -> str | None:
    """The architecture that a local or known model names; None if that takes a download."""
    files = (
        expanded(path) / "config.json",
        asset(f"{path}/config.json"),
        asset(f"architectures/{path.rpartition('/')[2].lower()}.json"),
    )
    for file in files:
        try:
            names = json.loads(file.read_text(encoding="utf-8")).get("architectures")
        except (OSError, ValueError, RecursionError, AttributeError):
            continue
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    return None


def _lists(architecture: str) -> bool:
    """Whether the installed vLLM has a model of this architecture. Its list is read as text: importing vLLM is slow."""
    spec = importlib.util.find_spec("vllm")
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        try:
            return f'"{architecture}"' in (Path(folder) / _REGISTRY).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    # An unknown layout says nothing against it.
    return True

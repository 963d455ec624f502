"""The fingerprint of samples: everything they depend on, in short digests. Equal fingerprints may share a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

from memfactory.components import ModuleOptions
from memfactory.config import Resolved
from memfactory.config.datasets import locate
from memfactory.engines.addresses import named_address
from memfactory.engines.options import HfEngineConfig, OpenAIEngineConfig
from memfactory.memory.options import MemoryConfig
from memfactory.model.model_files import file_digest, weights_fingerprint
from memfactory.model.options import ModelConfig
from memfactory.plugins.boundary import code_digest
from memfactory.registry import AGENTS, MODULES, Options
from memfactory.types import SamplingParams


def digest(value: object) -> str:
    """12 hexadecimal digits that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def sampling_fingerprint(resolved: Resolved, sampling_params: SamplingParams, seed: int) -> dict[str, str | None]:
    """Everything but its task that a sample depends on: model, agent, engines, sampling parameters."""
    config = resolved.config
    engines = {
        module.options.engine
        for module in config.agent.modules.values()
        if isinstance(module.options, ModuleOptions) and module.options.engine in config.engines
    }
    agent = {
        "agent": resolved.values["agent"],
        "engines": {name: _engine_values(config.engines[name]) for name in engines},
    }
    # These entries are optional, so that the samples of agents without them keep their fingerprint.
    if config.memory != MemoryConfig():
        agent["memory"] = resolved.values["memory"]
    if learnt := _weights_of_modules(resolved):
        agent["learnt"] = learnt
    if code := _code_of_users(resolved):
        agent["code"] = code
    return {**_policy(resolved), "agent": digest(agent), "decoding": _decoding(sampling_params, seed)}


def _weights_of_modules(resolved: Resolved) -> dict[str, str]:
    """A digest of the weights of each module that has its own."""
    modules = resolved.config.agent.modules
    paths = {slot: getattr(module.options, "weights", None) for slot, module in modules.items()}
    files = {slot: locate(path, resolved.base_dir) for slot, path in paths.items() if isinstance(path, str)}
    return {slot: file_digest(path) for slot, path in files.items() if path is not None}


def _code_of_users(resolved: Resolved) -> dict[str, str]:
    """A digest of the user's own code: of the agent and of each module that does not come with MemFactory."""
    spec = resolved.config.agent
    parts = {"agent": AGENTS.get(spec.name)} | {slot: MODULES.get(module.name) for slot, module in spec.modules.items()}
    return {name: code for name, part in parts.items() if (code := code_digest(part)) is not None}


def judge_fingerprint(resolved: Resolved, options: Options, engine: str) -> str:
    """A digest of the judge's options and of the engine that it asks."""
    values = options.model_dump(mode="json", exclude={"weight"})
    return digest([values, _engine_values(resolved.config.engines[engine])])


def _policy(resolved: Resolved) -> dict[str, str | None]:
    config = resolved.config
    if isinstance(config.engine, OpenAIEngineConfig):
        return {
            "model": f"{config.engine.model} at {named_address(config.engine.base_url) or 'the default endpoint'}",
            "weights": None,
        }
    return _model(config.model)


def _model(model: ModelConfig) -> dict[str, str | None]:
    settings = model.model_dump(mode="json", include={"dtype", "random_weights", "chat_template", "template_options"})
    name = model.path if model.adapter is None else f"{model.path} + {model.adapter}"
    return {"model": name, "weights": digest([weights_fingerprint(model), settings])}


def _engine_values(engine: object) -> Mapping[str, object]:
    """The settings that an engine's replies depend on."""
    if isinstance(engine, OpenAIEngineConfig):
        values = engine.model_dump(include={"kind", "model", "temperature", "top_p"})
        return {**values, "base_url": named_address(engine.base_url)}
    if isinstance(engine, HfEngineConfig):
        sampling = engine.model_dump(include={"temperature", "top_p"})
        return {"model": "the policy's" if engine.model is None else _model(engine.model), **sampling}
    return {"kind": "the policy's weights"}


def _decoding(sampling_params: SamplingParams, seed: int) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in {**asdict(sampling_params), "seed": seed}.items())

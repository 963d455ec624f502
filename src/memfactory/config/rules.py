"""Rules across sections that hold on any machine: engines that are named exist, numbers fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from memfactory.components import POLICY, ModuleOptions
from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.tree import KeyPath
from memfactory.engines.options import EngineConfig, HfEngineConfig, OpenAIEngineConfig
from memfactory.errors import unknown
from memfactory.model.options import ModelConfig
from memfactory.registry import REWARDS

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_rules(config: RunConfig, problems: Problems) -> None:
    """Add everything that cannot work to `problems`. Values that have a problem already are left alone."""
    _engines(config, problems)
    for index, name in enumerate(config.eval.metrics):
        if name not in REWARDS.names():
            problems.add(("eval", "metrics", index), unknown("reward", name, REWARDS.names()))
    engines: dict[KeyPath, EngineConfig] = {("engine",): config.engine}
    engines |= {("engines", name): engine for name, engine in config.engines.items()}
    for path, engine in engines.items():
        address = engine.base_url if isinstance(engine, OpenAIEngineConfig) else None
        if address is not None and not address.startswith(("http://", "https://")):
            problems.add((*path, "base_url"), f"{address!r} is not an address; it begins with http:// or https://")
    if isinstance(config.engine, HfEngineConfig) and config.engine.model is not None:
        problems.add(
            ("engine", "model"), "the policy's model is the section `model:`; only `engines:` have models of their own"
        )
    for path, model in models(config).items():
        _model(model, path, problems)


def models(config: RunConfig) -> dict[KeyPath, ModelConfig]:
    """The models of the policy and of other engines, by their keys."""
    own: dict[KeyPath, ModelConfig] = {
        ("engines", name, "model"): engine.model
        for name, engine in config.engines.items()
        if isinstance(engine, HfEngineConfig) and engine.model is not None
    }
    return {("model",): config.model, **own}


def reward_engines(config: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    """The key and the name of each judge's engine."""
    rewards = getattr(config.env.options, "rewards", {})
    for name, entry in rewards.items() if isinstance(rewards, dict) else ():
        if name not in REWARDS.names() or not REWARDS.get(name).asks_a_model:
            continue
        field = REWARDS.options(name).model_fields.get("engine")
        engine = entry.get("engine", field and field.default) if isinstance(entry, dict) else field and field.default
        if isinstance(engine, str):
            yield ("env", "rewards", name, "engine"), engine


def _engines(config: RunConfig, problems: Problems) -> None:
    if problems.touch(("engines",)):
        return
    existing = {POLICY, *config.engines}
    if POLICY in config.engines:
        problems.add(("engines", POLICY), "the name 'policy' is taken by `engine:`; choose another")
    for path, name in reward_engines(config):
        if name not in existing:
            problems.add(path, unknown("engine", name, existing) + " Add it under `engines:`.")
    for slot, module in config.agent.modules.items():
        options, path = module.options, ("agent", "modules", slot, "engine")
        if not isinstance(options, ModuleOptions):
            continue
        if options.engine not in existing:
            problems.add(path, unknown("engine", options.engine, existing) + " Add it under `engines:`.")
        elif options.interface != "inference" and options.engine != POLICY:
            problems.add(
                path,
                f"interface {options.interface!r} generates with the policy; engine {options.engine!r} needs "
                "interface: inference",
            )


def _model(model: ModelConfig, path: KeyPath, problems: Problems) -> None:
    if not _DEVICE.fullmatch(model.device):
        problems.add((*path, "device"), f"expected auto, cpu, mps, cuda or cuda:N; given {model.device!r}")
    if model.attention == "flash_attention_2" and model.dtype == "float32":
        problems.add((*path, "attention"), "flash_attention_2 cannot compute in float32; use dtype: bfloat16")

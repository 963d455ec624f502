"""Rules across sections that hold on any machine: engines that are named exist, numbers fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from memfactory.components import POLICY, ModuleOptions
from memfactory.config.objectives import ObjectiveOptions
from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.training import GrpoOptions, TrainerOptions
from memfactory.config.tree import KeyPath
from memfactory.engines.options import EngineConfig, HfEngineConfig, OpenAIEngineConfig
from memfactory.errors import unknown
from memfactory.model.options import ModelConfig
from memfactory.registry import MODULES, OBJECTIVES, REWARDS

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_rules(config: RunConfig, problems: Problems) -> list[str]:
    """Note what cannot work in `problems`; what can, but deserves a word, is returned.

    A rule about values that have a problem of their own is left for when they are mended.
    """
    _engines(config, problems)
    for index, name in enumerate(config.eval.metrics):
        if name not in REWARDS.names():
            problems.add(("eval", "metrics", index), unknown("reward", name, REWARDS.names()))
    engines: dict[KeyPath, EngineConfig] = {("engine",): config.engine}
    engines |= {("engines", name): engine for name, engine in config.engines.items()}
    for path, engine in engines.items():
        address = engine.base_url if isinstance(engine, OpenAIEngineConfig) else None
        if address is not None and not address.startswith(("http://", "https://")):
            problems.add((*path, "base_url"), f"{address!r} is no address; it begins with http:// or https://")
    if isinstance(config.engine, HfEngineConfig) and config.engine.model is not None:
        problems.add(("engine", "model"), "the policy's model is the section `model:`; only helpers have their own")
    for path, model in models(config).items():
        _model(model, path, problems)
    if config.train is None or not isinstance(config.train.options, TrainerOptions):
        return []
    return [*_training(config.train.options, problems), *_uncredited(config, problems)]


def models(config: RunConfig) -> dict[KeyPath, ModelConfig]:
    """The policy's model and those of the helpers that have their own, by where each is configured."""
    own: dict[KeyPath, ModelConfig] = {
        ("engines", name, "model"): engine.model
        for name, engine in config.engines.items()
        if isinstance(engine, HfEngineConfig) and engine.model is not None
    }
    return {("model",): config.model, **own}


def reward_engines(config: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    """Where a reward names the engine that judges, and the name."""
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
                f"interface {options.interface!r} is spoken by the policy; engine {options.engine!r} needs "
                "interface: inference",
            )


def _model(model: ModelConfig, path: KeyPath, problems: Problems) -> None:
    if not _DEVICE.fullmatch(model.device):
        problems.add((*path, "device"), f"expected auto, cpu, mps, cuda or cuda:N; given {model.device!r}")
    if model.attention == "flash_attention_2" and model.dtype == "float32":
        problems.add((*path, "attention"), "flash_attention_2 cannot compute in float32; use dtype: bfloat16")


def _training(options: TrainerOptions, problems: Problems) -> list[str]:
    warnings = []
    optimizer, updates = options.optimizer, options.planned_updates
    if optimizer.schedule != "constant" and 0 < updates <= optimizer.warmup_steps:
        warnings.append(
            f"train.optimizer.warmup_steps: {optimizer.warmup_steps} of {updates} optimizer steps are warm-up, so the "
            f"{optimizer.schedule} schedule never falls"
        )
    return [*warnings, *_grpo(options, problems)] if isinstance(options, GrpoOptions) else warnings


def _uncredited(config: RunConfig, problems: Problems) -> Iterator[str]:
    """A word on each of `env.steps` that no module of the agent has: it credits nothing."""
    credited = getattr(config.env.options, "steps", {})
    if not credited or problems.touch(("agent",), ("env",)):
        return
    existing = {step for module in config.agent.modules.values() for step in MODULES.get(module.name).steps}
    for step in credited:
        if existing and step not in existing:
            yield f"env.steps.{step} credits nothing: {unknown('step of this agent', step, existing)}"


def _objective(options: GrpoOptions) -> Iterator[str]:
    """A word on clips and penalties that cannot take effect."""
    loss, (name, _) = options.loss, options.loss.named_objective
    own = OBJECTIVES.options(name)
    if issubclass(own, ObjectiveOptions) and own.binds is not None and own.suggested is not None:
        widest = max(loss.clip_low, loss.clip_high)
        if widest > own.binds:
            low, high = own.suggested
            yield (
                f"train.loss.clip_low and clip_high: the ratio of {name!r} is a mean over a turn's tokens and stays "
                f"near 1, so a range of {widest:g} never takes effect; its paper clips at {low:g} and {high:g}"
            )
    if name == "kl_cov" and options.minibatches * options.epochs == 1:
        yield (
            "train.loss.objective: kl_cov penalizes the distance from the policy that sampled, which is 0 in the only "
            "update on a rollout; raise train.minibatches or train.epochs"
        )


def _grpo(options: GrpoOptions, problems: Problems) -> Iterator[str]:
    low, high = options.loss.correction_low, options.loss.correction_high
    if low > high and not problems.touch(("train", "loss")):
        problems.add(("train", "loss", "correction_low"), f"{low:g} is above correction_high = {high:g}")
    sizes: tuple[KeyPath, ...] = (("train", "minibatches"), ("train", "prompts_per_step"))
    if options.minibatches > options.prompts_per_step and not problems.touch(*sizes):
        problems.add(
            ("train", "minibatches"),
            f"the {options.prompts_per_step} prompts of a step (prompts_per_step) cannot be split into "
            f"{options.minibatches} parts",
        )
    yield from _objective(options)
    if options.generations == 1:
        yield "train.generations: a group of 1 has no advantage, so nothing will be learned"
    cut = [name for name, on in (("train.top_p", options.top_p < 1), ("train.top_k", options.top_k > 0)) if on]
    if cut:
        yield f"{' and '.join(cut)}: replies are drawn from a cut distribution but scored under the whole one"

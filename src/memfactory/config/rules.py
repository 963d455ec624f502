"""Rules across sections that hold on any machine: engines that are named exist, numbers fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.training import GrpoOptions, TrainerOptions
from memfactory.config.tree import KeyPath
from memfactory.dialogue import POLICY, ModuleOptions
from memfactory.engines.options import ModelConfig
from memfactory.errors import nearest, unknown
from memfactory.registry import REWARDS

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_rules(config: RunConfig, problems: Problems) -> list[str]:
    """Note what cannot work in `problems`; what can, but deserves a word, is returned."""
    _engines(config, problems)
    for index, name in enumerate(config.eval.metrics):
        if name not in REWARDS.names():
            problems.add(("eval", "metrics", index), unknown("reward", name, REWARDS.names()))
    _model(config.model, problems)
    if config.train is None or not isinstance(config.train.options, TrainerOptions):
        return []
    return _training(config.train.options, problems)


def reward_engines(config: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    """Where a reward names the engine that judges, and the name."""
    rewards = getattr(config.env.options, "rewards", {})
    for name, entry in rewards.items() if isinstance(rewards, dict) else ():
        values = entry if isinstance(entry, dict) else {"weight": entry}
        engine = getattr(REWARDS.options(name).model_validate(values), "engine", None)
        if isinstance(engine, str):
            yield ("env", "rewards", name, "engine"), engine


def _engines(config: RunConfig, problems: Problems) -> None:
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


def _model(model: ModelConfig, problems: Problems) -> None:
    if not _DEVICE.fullmatch(model.device):
        near = nearest(model.device, ("auto", "cpu", "cuda", "cuda:0", "mps"))
        hint = f"; did you mean {near!r}?" if near else ""
        problems.add(("model", "device"), f"expected auto, cpu, mps, cuda or cuda:N; given {model.device!r}{hint}")
    if model.attention == "flash_attention_2" and model.dtype == "float32":
        problems.add(("model", "attention"), "flash_attention_2 cannot compute in float32; use dtype: bfloat16")


def _training(options: TrainerOptions, problems: Problems) -> list[str]:
    warnings = []
    optimizer = options.optimizer
    if optimizer.schedule != "constant" and optimizer.warmup_steps >= options.steps:
        warnings.append(
            f"train.optimizer.warmup_steps: {optimizer.warmup_steps} of {options.steps} steps are warm-up, so the "
            f"{optimizer.schedule} schedule never falls"
        )
    return [*warnings, *_grpo(options, problems)] if isinstance(options, GrpoOptions) else warnings


def _grpo(options: GrpoOptions, problems: Problems) -> Iterator[str]:
    low, high = options.loss.correction_low, options.loss.correction_high
    if low > high:
        problems.add(("train", "loss", "correction_low"), f"{low:g} is above correction_high = {high:g}")
    if options.minibatches > options.prompts_per_step:
        problems.add(
            ("train", "minibatches"),
            f"the {options.prompts_per_step} prompts of a step (prompts_per_step) cannot be split into "
            f"{options.minibatches} parts",
        )
    if options.generations == 1:
        yield "train.generations: a group of 1 has no advantage, so nothing will be learned"
    cut = [name for name, on in (("train.top_p", options.top_p < 1), ("train.top_k", options.top_k > 0)) if on]
    if cut:
        yield f"{' and '.join(cut)}: replies are drawn from a cut distribution but scored under the whole one"

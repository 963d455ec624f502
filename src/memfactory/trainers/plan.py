"""`memfactory train --dry-run`: what a run will do and take, before any weight is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from memfactory.build import build_agent, build_env, build_tasks
from memfactory.config import Resolved
from memfactory.config.training import GrpoOptions, LoopOptions, LoraOptions, OnlineOptions, TrainerOptions
from memfactory.dialogue import POLICY, LearningModule, play
from memfactory.engines.loading import load_architecture, load_chat, places
from memfactory.engines.options import HfEngineConfig, ModelConfig, speak_alike
from memfactory.engines.scripted import ScriptedEngine
from memfactory.environment import memory_bytes
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.registry import MODULES
from memfactory.trainers.footprint import (
    BYTES,
    Architecture,
    architecture,
    memory_by_component,
    peak_bytes,
)
from memfactory.types import Codec, Episode, Message, Sampling, Task

if TYPE_CHECKING:
    from rich.console import RenderableType

SAMPLED_TASKS = 16
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a run will do (`work`) and take (`memory`, bytes). `problems` make it impossible; `warnings` do not."""

    title: str
    work: tuple[tuple[str, str], ...]
    memory: dict[str, int] = field(default_factory=dict)
    device: str = ""
    capacity: int = 0
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def render(self) -> RenderableType:
        """Tables for a terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        work = Table(title=self.title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, value in self.work:
            work.add_row(name, value)
        parts: list[RenderableType] = [work]
        if self.memory:
            memory = Table("component", "GiB", title=f"\nMemory against {self.device}", title_justify="left", box=None)
            for name, size in self.memory.items():
                memory.add_row(name, f"{size / GIB:,.2f}")
            memory.add_row("[bold]peak", f"[bold]{peak_bytes(self.memory) / GIB:,.2f} of {self.capacity / GIB:,.2f}")
            parts.append(memory)
        parts += [Text(f"warning: {text}", style="yellow") for text in self.warnings]
        parts += [Text(f"impossible: {text}", style="bold red") for text in self.problems]
        return Group(*parts)


@dataclass(frozen=True)
class Lengths:
    """Turns of one trajectory at the longest replies: (prompt tokens, reply tokens) of each, averaged over tasks."""

    turns: float
    prompt: float
    reply: float
    longest: int
    trained: tuple[str, ...]
    helpers: tuple[str, ...]


def make_plan(resolved: Resolved) -> Plan:
    """The plan of a training run; what makes it impossible is in its `problems`, not raised."""
    config = resolved.config
    if config.train is None or not isinstance(config.train.options, LoopOptions):
        raise ConfigError("train: this config names no trainer")
    options = config.train.options
    if not isinstance(options, TrainerOptions):
        return _plan_of_modules(resolved, options)
    problems: list[str] = []
    warnings: list[str] = []
    work = [("model", config.model.path), ("trainer", config.train.name), ("agent", config.agent.name)]
    work.append(("optimizer steps", f"{options.steps:,}"))
    sizes = _architecture(config.model, problems)
    lengths = None
    if isinstance(options, GrpoOptions):
        lengths = _lengths(resolved, problems, warnings)
    if lengths is not None and isinstance(options, GrpoOptions):
        work += _grpo_work(options, lengths)
        if sizes is not None and lengths.longest > sizes.max_positions:
            problems.append(
                f"a conversation of {lengths.longest:,} tokens (prompt and longest reply) does not fit the model's "
                f"{sizes.max_positions:,} positions; lower the agent's chunk or reply lengths"
            )
        if not lengths.trained:
            problems.append("no module is trained: every one has interface: inference")
    if sizes is None:
        return Plan(f"Plan of {config.train.name}", tuple(work), problems=tuple(problems), warnings=tuple(warnings))
    options = _as_trained(config.model, options)
    dtype = compute_type(config.model)
    memory = memory_by_component(
        sizes,
        options,
        dtype=dtype,
        kv_tokens=_kv_tokens(resolved, lengths),
        micro_tokens=max(options.micro_batch_tokens, lengths.longest) if lengths else options.micro_batch_tokens,
        reference=isinstance(options, GrpoOptions) and options.loss.kl_weight > 0,
        cuda=_on_cuda(config.model),
    )
    helpers = _helper_bytes(resolved, problems)
    memory |= {"helpers' weights": helpers} if helpers else {}
    device, capacity = _device(config.model)
    work.append(
        ("parameters", f"{sizes.parameters / 1e6:,.1f} M, {'LoRA' if options.lora else 'all'} trained, {dtype}")
    )
    if peak_bytes(memory) > capacity:
        problems.append(
            f"about {peak_bytes(memory) / GIB:.1f} GiB are needed, but {device} has {capacity / GIB:.1f} GiB; "
            "use train.lora, train.optimizer.kind=adamw_8bit, train.gradient_checkpointing=true, a smaller "
            "train.micro_batch_tokens or engine.max_batch_tokens, or another model"
        )
    problems += _disk(resolved, sizes, options)
    title = f"Plan of {resolved.source.name if resolved.source else config.train.name}"
    return Plan(title, tuple(work), memory, device, capacity, tuple(problems), tuple(warnings))


def _plan_of_modules(resolved: Resolved, options: LoopOptions) -> Plan:
    """The plan of a run that leaves the language model as it is."""
    config = resolved.config
    slots = [slot for slot, one in config.agent.modules.items() if issubclass(MODULES.get(one.name), LearningModule)]
    work = [("model", f"{config.model.path}, not trained"), ("trainer", config.train.name if config.train else "")]
    work += [("agent", config.agent.name), ("trained modules", ", ".join(slots) or "none")]
    work.append(("steps", f"{options.steps:,}"))
    if isinstance(options, OnlineOptions):
        work.append(("attempts", f"{options.batch_size} a step, {options.steps * options.batch_size:,} in all"))
    return Plan(f"Plan of {resolved.name}", tuple(work))


def _helper_bytes(resolved: Resolved, problems: list[str]) -> int:
    """The weights of helpers' own models that lie where the policy lies (their caches are not counted)."""
    loaded: list[HfEngineConfig] = []
    size = 0
    for helper in resolved.config.engines.values():
        if not isinstance(helper, HfEngineConfig) or helper.model is None:
            continue
        if any(speak_alike(helper, other) for other in loaded):
            continue
        loaded.append(helper)
        sizes = _architecture(helper.model, problems)
        if sizes is not None and _on_cuda(helper.model) == _on_cuda(resolved.config.model):
            size += sizes.parameters * BYTES[compute_type(helper.model)]
    return size


def _as_trained(model: ModelConfig, options: TrainerOptions) -> TrainerOptions:
    """The options with the adapter that `model` already carries, where it does: then that is what goes on training."""
    _, adapter = places(model)
    if adapter is None:
        return options
    description = Path(adapter) / "adapter_config.json"
    rank = json.loads(description.read_text(encoding="utf-8"))["r"] if description.is_file() else LoraOptions().rank
    return options.model_copy(update={"lora": LoraOptions(rank=rank)})


def compute_type(model: ModelConfig) -> str:
    """The compute type that `dtype: auto` stands for here."""
    if model.dtype != "auto":
        return model.dtype
    return "bfloat16" if _on_cuda(model) else "float32"


def _architecture(model: ModelConfig, problems: list[str]) -> Architecture | None:
    try:
        return architecture(load_architecture(model))
    except ConfigError as error:
        problems.append(str(error))
        return None


def _grpo_work(options: GrpoOptions, lengths: Lengths) -> list[tuple[str, str]]:
    prompts, group = options.prompts_per_step, options.generations
    trajectories = prompts * group
    conversations = trajectories * lengths.turns
    tokens = conversations * (lengths.prompt + lengths.reply)
    rows = [
        ("trained steps of modules", ", ".join(lengths.trained) or "none"),
        ("prompts x generations", f"{prompts} x {group} = {trajectories:,} trajectories per rollout"),
        ("optimizer steps per rollout", str(options.minibatches * options.epochs)),
        ("turns per trajectory", f"{lengths.turns:.1f}"),
        ("conversations per optimizer step", f"{conversations / options.minibatches:,.0f}"),
        ("tokens per conversation", f"prompt {lengths.prompt:,.0f}, reply at most {lengths.reply:,.0f}"),
        ("tokens per optimizer step", f"at most {tokens / options.minibatches:,.0f}"),
    ]
    if lengths.helpers:
        rows.append(("frozen helpers asked", ", ".join(lengths.helpers)))
    if options.valid_groups is not None:
        rows.append(("ends after", f"{options.valid_groups} groups whose rewards differ"))
    return rows


def _lengths(resolved: Resolved, problems: list[str], warnings: list[str]) -> Lengths | None:
    """Play the agent over the first training tasks with replies of the longest allowed length."""
    config = resolved.config
    try:
        codec = _codec(config.model, warnings)
        env = build_env(config.env, {name: _longest() for name in config.engines})
        if config.data.train is None:
            raise ConfigError("data.train: no training data is named")
        tasks = build_tasks(config.data.train, env, resolved.base_dir).tasks
        return _play_longest(resolved, codec, tasks[:SAMPLED_TASKS])
    except MemFactoryError as error:
        problems.append(str(error))
        return None


def _codec(model: ModelConfig, warnings: list[str]) -> Codec:
    try:
        return load_chat(model)
    except ConfigError as error:
        warnings.append(f"tokens are counted with the tokenizer of `tiny`: {error}")
        return load_chat(ModelConfig())


def _longest() -> ScriptedEngine:
    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        return " word" * sampling.max_tokens

    return ScriptedEngine(reply)


def _play_longest(resolved: Resolved, codec: Codec, tasks: Sequence[Task]) -> Lengths:
    agent = build_agent(resolved.config.agent, codec)

    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        prompt = sum(len(codec.offsets(message.content)) + 5 for message in messages)
        lengths.append((prompt, sampling.max_tokens))
        return " word" * sampling.max_tokens

    lengths: list[tuple[int, int]] = []
    engines = dict.fromkeys([POLICY, *resolved.config.engines], ScriptedEngine(reply))
    episodes = [Episode(task) for task in tasks]
    for _ in play(agent, episodes, engines, frozen=True):
        pass
    trained = [
        step
        for slot, module in agent.modules.items()
        if module.options.interface != "inference"
        for step in module.steps
    ]
    helpers = [
        f"{slot} ({module.options.engine})"
        for slot, module in agent.modules.items()
        if module.options.interface == "inference"
    ]
    return Lengths(
        turns=len(lengths) / len(episodes),
        prompt=fmean(prompt for prompt, _ in lengths),
        reply=fmean(longest for _, longest in lengths),
        longest=max(prompt + longest for prompt, longest in lengths),
        trained=tuple(trained),
        helpers=tuple(helpers),
    )


def _kv_tokens(resolved: Resolved, lengths: Lengths | None) -> int:
    engine = resolved.config.engine
    if lengths is None or not isinstance(engine, HfEngineConfig):
        return 0
    return min(engine.max_batch * lengths.longest, max(engine.max_batch_tokens, lengths.longest))


def _on_cuda(model: ModelConfig) -> bool:
    return torch.cuda.is_available() and model.device != "cpu"


def _device(model: ModelConfig) -> tuple[str, int]:
    if _on_cuda(model):
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory
    return "this machine's memory (no GPU is used)", memory_bytes() or 0


def _disk(resolved: Resolved, sizes: Architecture, options: TrainerOptions) -> list[str]:
    """Room for the checkpoints kept and the one being written: float32 weights and the optimizer's state each."""
    trained = sizes.parameters * (12 if options.lora is None else 1)
    needed = trained * (options.keep_checkpoints + 1)
    free = shutil.disk_usage(".").free
    if needed <= free:
        return []
    return [f"checkpoints take about {needed / GIB:.1f} GiB, but {free / GIB:.1f} GiB of disk are free"]

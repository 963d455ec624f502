"""`memfactory train --dry-run`: what a run will do and take, before any weight is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from memfactory.config import Resolved
from memfactory.config.training import GrpoOptions, LoopOptions, LoraOptions, OnlineOptions, SftOptions, TrainerOptions
from memfactory.dialogue import LearningModule
from memfactory.engines.options import EngineConfig, HfEngineConfig
from memfactory.environment import memory_bytes
from memfactory.errors import ConfigError
from memfactory.model.loading import places
from memfactory.model.options import ModelConfig
from memfactory.plan.footprint import (
    BYTES,
    Architecture,
    adapter_parameters,
    moment_bytes,
    offloads,
    peak_bytes,
    phase_bytes,
    phase_components,
)
from memfactory.plan.lengths import Lengths, longest_lengths
from memfactory.plan.memory import Device, architecture_of, compute_type, planned_memory
from memfactory.policy.conversations import planned_conversations
from memfactory.registry import MODULES

if TYPE_CHECKING:
    from rich.console import RenderableType

GIB = 2**30
# A GPU's driver, and the gaps that an allocator leaves.
SPARE_SHARE = 0.06


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

        work = Table(
            title=Text(self.title, style="italic"), title_justify="left", show_header=False, box=None, padding=(0, 2)
        )
        for name, value in self.work:
            work.add_row(Text(name), Text(value))
        parts: list[RenderableType] = [work]
        if self.memory:
            against = Text(f"\nMemory against {self.device}", style="italic")
            memory = Table("component", "GiB", title=against, title_justify="left", box=None)
            for name, size in self.memory.items():
                if size:
                    memory.add_row(Text(name), f"{size / GIB:,.2f}")
            for phase, size in phase_bytes(self.memory).items():
                held = f"{size / GIB:,.2f} of {self.capacity / GIB:,.2f}"
                memory.add_row(Text(f"peak of the {phase}"), Text(held), style="bold")
            parts += [memory, Text(f"What takes most: {self.most()}")]
        parts += [Text(f"warning: {text}", style="yellow") for text in self.warnings]
        parts += [Text(f"impossible: {text}", style="bold red") for text in self.problems]
        return Group(*parts)

    def most(self) -> str:
        """The phase with the largest peak, and its three largest components with their shares of it."""
        peaks = phase_bytes(self.memory)
        phase = max(peaks, key=lambda name: peaks[name])
        there = phase_components(self.memory)[phase]
        largest = sorted(there, key=lambda name: -there[name])[:3]
        return f"the {phase}, " + ", ".join(f"{name} {there[name] / peaks[phase]:.0%}" for name in largest)


def make_plan(resolved: Resolved, device: Device | None = None) -> Plan:
    """The plan of a training run; what makes it impossible is in its `problems`, not raised.

    `device` is what it is planned for; None: what the config's `model.device` stands for on this machine.
    """
    config = resolved.config
    if config.train is None or not isinstance(config.train.options, LoopOptions):
        raise ConfigError("train: this config names no trainer")
    options = config.train.options
    if not isinstance(options, TrainerOptions):
        return _plan_of_modules(resolved, options)
    problems: list[str] = []
    warnings: list[str] = []
    work = [("model", config.model.path), ("trainer", config.train.name)]
    work += [("agent", config.agent.name)] if options.plays else []
    sizes = architecture_of(config.model, problems)
    lengths = None
    if isinstance(options, SftOptions):
        options, learnt = planned_conversations(resolved, options, problems)
        work += learnt
    work.append(("optimizer steps", f"{options.steps:,}" if options.steps else "unknown"))
    if isinstance(options, GrpoOptions):
        lengths = longest_lengths(resolved, problems, warnings)
    if lengths is not None and isinstance(options, GrpoOptions):
        work += _grpo_work(options, lengths)
        warnings += [] if lengths.cut is None else [f"of the first training tasks {lengths.cut}"]
        if sizes is not None and lengths.longest > sizes.max_positions:
            problems.append(
                f"a conversation of {lengths.longest:,} tokens (prompt and longest reply) does not fit the model's "
                f"{sizes.max_positions:,} positions; lower the agent's chunk or reply lengths"
            )
        if not lengths.trained:
            problems.append("no module is trained: every one has interface: inference")
    if sizes is None:
        return Plan(_title(resolved), tuple(work), problems=tuple(problems), warnings=tuple(warnings))
    options = _as_trained(config.model, options, problems)
    # What this machine's memory and disk lack is no problem of a run that is planned for another.
    lacking = problems if device is None else warnings
    device = device or device_of(config.model)
    dtype = compute_type(config.model, cuda=device.cuda)
    memory = planned_memory(resolved, options, sizes, lengths, device, problems)
    trained = sizes.parameters if options.lora is None else adapter_parameters(sizes, options.lora.rank)
    moments = moment_bytes(trained, options, cuda=device.cuda)
    work += _parameter_work(sizes, options, dtype, moments, device)
    _judge_memory(memory, device, _savings(options, resolved.config.engine, device), problems, warnings)
    if offloads(options, cuda=device.cuda):
        lacking += _host(moments)
    lacking += _disk(options, (4 if options.lora else BYTES[options.masters]) * trained + moments)
    return Plan(_title(resolved), tuple(work), memory, device.name, device.capacity, tuple(problems), tuple(warnings))


def _parameter_work(
    sizes: Architecture, options: TrainerOptions, dtype: str, moments: int, device: Device
) -> list[tuple[str, str]]:
    kind = options.optimizer.kind_on(cuda=device.cuda, stochastic=options.stochastic)
    place = f", {moments / GIB:.1f} GiB of moments in the host's memory" if offloads(options, cuda=device.cuda) else ""
    rounding = ", rounded at random" if options.stochastic else ""
    what = "LoRA" if options.lora else f"all trained as {options.masters}{rounding}"
    return [("parameters", f"{sizes.parameters / 1e6:,.1f} M, {what}, {dtype}"), ("optimizer", f"{kind}{place}")]


def _savings(options: TrainerOptions, engine: EngineConfig, device: Device) -> str:
    """What would take less memory and is not on yet."""
    kind, whole = options.optimizer.kind_on(cuda=device.cuda, stochastic=options.stochastic), options.lora is None
    steps = ["train.lora"] if whole else []
    if device.cuda and kind == "adamw":
        offload = " or adamw_offload" if whole else ""
        steps.append(f"train.optimizer.kind=adamw_8bit{'_torchao' if options.stochastic else ''}{offload}")
    if whole and not options.stochastic:
        steps.append("train.master_weights=bfloat16_stochastic")
    if not options.gradient_checkpointing:
        steps.append("train.gradient_checkpointing=true")
    batch = " or engine.max_batch_tokens" if isinstance(engine, HfEngineConfig) else ""
    return ", ".join([*steps, f"a smaller train.micro_batch_tokens{batch}", "or another model"])


def _judge_memory(
    memory: dict[str, int], device: Device, savings: str, problems: list[str], warnings: list[str]
) -> None:
    """Note where the peak is beyond the device's memory, or so near it that the gaps of an allocator decide."""
    peak = peak_bytes(memory)
    if peak > device.capacity:
        problems.append(
            f"about {peak / GIB:.1f} GiB are needed, but {device.name} has {device.capacity / GIB:.1f} GiB; "
            f"use {savings}"
        )
    elif device.cuda and peak > (1 - SPARE_SHARE) * device.capacity:
        warnings.append(
            f"the peak leaves less than {SPARE_SHARE:.0%} of {device.name} to its driver and to the gaps between "
            "allocations; a run may have to halve train.micro_batch_tokens, or fail"
        )


def _plan_of_modules(resolved: Resolved, options: LoopOptions) -> Plan:
    """The plan of a run that leaves the language model as it is."""
    config = resolved.config
    slots = [slot for slot, one in config.agent.modules.items() if issubclass(MODULES.get(one.name), LearningModule)]
    work = [("model", f"{config.model.path}, not trained"), ("trainer", config.train.name if config.train else "")]
    work += [("agent", config.agent.name), ("trained modules", ", ".join(slots) or "none")]
    work.append(("steps", f"{options.steps:,}"))
    if isinstance(options, OnlineOptions):
        work.append(("attempts", f"{options.batch_size} a step, {options.steps * options.batch_size:,} in all"))
    return Plan(_title(resolved), tuple(work))


def _title(resolved: Resolved) -> str:
    return f"Plan of {resolved.name}"


def _as_trained(model: ModelConfig, options: TrainerOptions, problems: list[str]) -> TrainerOptions:
    """The options with the adapter that `model` already carries, where it does: then that is what goes on training.

    Kinds of adapters without a rank are planned for as LoRA of the usual one.
    """
    _, adapter = places(model)
    if adapter is None:
        return options
    description = Path(adapter) / "adapter_config.json"
    try:
        described = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"model.adapter: {description} cannot be read: {error}")
        described = {}
    rank = described.get("r") if isinstance(described, dict) else None
    return options.model_copy(update={"lora": LoraOptions(rank=rank) if isinstance(rank, int) else LoraOptions()})


def _grpo_work(options: GrpoOptions, lengths: Lengths) -> list[tuple[str, str]]:
    prompts, group = options.prompts_per_step, options.group_size
    trajectories = prompts * group
    conversations = trajectories * lengths.turns
    tokens = conversations * (lengths.prompt + lengths.reply)
    rows = [
        ("trained steps of modules", ", ".join(lengths.trained) or "none"),
        ("prompts x group size", f"{prompts} x {group} = {trajectories:,} trajectories per rollout"),
        ("optimizer steps per rollout", str(options.minibatches * options.epochs)),
        ("turns per trajectory", f"{lengths.turns:.1f}"),
        ("conversations per optimizer step", f"{conversations / options.minibatches:,.0f}"),
        ("tokens per conversation", f"prompt {lengths.prompt:,.0f}, reply at most {lengths.reply:,.0f}"),
        ("tokens per optimizer step", f"at most {tokens / options.minibatches:,.0f}"),
    ]
    if lengths.texts.texts:
        texts = lengths.texts
        left_out = f"{texts.dropped:,} of {texts.read + texts.dropped:,} tokens" if texts.cut else "nothing"
        rows.append((f"left out of the first {texts.texts} texts", left_out))
    if lengths.helpers:
        rows.append(("frozen helpers asked", ", ".join(lengths.helpers)))
    if options.valid_groups is not None:
        rows.append(("ends after", f"{options.valid_groups} groups whose rewards differ"))
    return rows


def device_of(model: ModelConfig) -> Device:
    """The device that `model` is trained on here."""
    if torch.cuda.is_available() and model.device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, properties.total_memory, cuda=True)
    return Device("this machine's memory (no GPU is used)", memory_bytes() or 0, cuda=False)


def _host(moments: int) -> list[str]:
    """Room for moments in the host's memory. Pinned memory comes in powers of two: a third more at the sizes usual."""
    there = memory_bytes() or 0
    if moments * 4 / 3 <= there:
        return []
    return [
        f"the optimizer's moments take about {moments * 4 / 3 / GIB:.1f} GiB of the host's memory, which has "
        f"{there / GIB:.1f} GiB; use train.optimizer.kind=adamw_8bit"
    ]


def _disk(options: TrainerOptions, checkpoint: int) -> list[str]:
    """Room for the checkpoints kept and the one being written, of so many bytes each."""
    needed = checkpoint * (options.keep_checkpoints + 1)
    free = shutil.disk_usage(".").free
    if needed <= free:
        return []
    return [f"checkpoints take about {needed / GIB:.1f} GiB, but {free / GIB:.1f} GiB of disk are free"]

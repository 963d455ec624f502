"""`memfactory train --dry-run`: the work and the memory of a run, before any weights are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from memfactory.config import Resolved
from memfactory.config.correction import auto_loss, chosen_correction
from memfactory.config.engine_choice import with_hf
from memfactory.config.optimizer import LOW_BIT_PACKAGES, LoraOptions, OptimizerKind
from memfactory.config.readiness import low_bit_packages
from memfactory.config.trained import trainer_options
from memfactory.config.training import TrainerOptions
from memfactory.engines.options import EngineConfig, HfEngineConfig, VllmEngineConfig
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
from memfactory.plan.memory import Device, architecture_of, planned_memory
from memfactory.plan.shards import is_sharded, loading_bytes
from memfactory.plan.vllm import GIB, PlannedModel, check_vllm, vllm_row, with_vllm
from memfactory.plan.work import Forecast, Row, Work
from memfactory.plugins.boundary import guarded
from memfactory.registry import MODULES, TRAINERS

if TYPE_CHECKING:
    from rich.console import RenderableType

# A GPU's driver, and the gaps that an allocator leaves.
SPARE_FRACTION = 0.06


@dataclass(frozen=True)
class Plan:
    """The work of a run as rows of a table, and its memory in bytes by component.

    `problems` make the run impossible; `warnings` do not.
    """

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
            parts += [memory, Text(f"Largest: {self.most()}")]
        parts += [Text(f"warning: {text}", style="yellow") for text in self.warnings]
        parts += [Text(f"impossible: {text}", style="bold red") for text in self.problems]
        return Group(*parts)

    def most(self) -> str:
        """The phase with the largest peak, and its three largest components as percentages of it."""
        peaks = phase_bytes(self.memory)
        phase = max(peaks, key=lambda name: peaks[name])
        present = phase_components(self.memory)[phase]
        largest = sorted(present, key=lambda name: -present[name])[:3]
        return f"the {phase}, " + ", ".join(f"{name} {present[name] / peaks[phase]:.0%}" for name in largest)


def make_plan(resolved: Resolved, device: Device | None = None, processes: int = 1) -> Plan:
    """The plan of a training run. Reasons why it is impossible are in its `problems`, not raised.

    `device` is the machine to plan for; None: the config's `model.device` on this machine, with `processes`.
    """
    if device is not None or processes > 1:
        # `auto` was resolved for one process on this machine.
        resolved = replace(resolved, config=with_hf(resolved.config, resolved.choices))
    config, options = resolved.config, trainer_options(resolved.config)
    if options is None:
        raise ConfigError("train: this config names no trainer")
    forecast = Forecast(resolved)
    trainer = TRAINERS.get(config.trainer_name)
    with guarded(trainer, doing="in planning"):
        work: Work = trainer.plan(options, forecast)
    rows: list[Row] = [("trainer", config.trainer_name)]
    rows += [("agent", config.agent.name)] if options.plays else []
    if options.policy is None:
        slots = [slot for slot, module in config.agent.modules.items() if MODULES.get(module.name).learns_itself]
        rows = [("model", f"{config.model.path}, not trained"), *rows, ("trained modules", ", ".join(slots) or "none")]
        rows.append(("steps", f"{work.steps:,}"))
        problems, warnings = tuple(forecast.problems), tuple(forecast.warnings)
        return Plan(f"Plan of {resolved.name}", (*rows, *work.rows), problems=problems, warnings=warnings)
    rows = [("model", config.model.path), *rows, ("optimizer steps", f"{work.steps:,}" if work.steps else "unknown")]
    rows += work.rows
    if device is None:
        return _plan_of_policy(forecast, options.policy, work, rows, device_of(config.model, processes), here=True)
    return _plan_of_policy(forecast, options.policy, work, rows, device, here=False)


def _plan_of_policy(
    forecast: Forecast, options: TrainerOptions, work: Work, rows: list[Row], device: Device, *, here: bool
) -> Plan:
    """The plan of a run that trains the language model, with its memory. `here`: the device is this machine's."""
    resolved, problems, warnings = forecast.resolved, forecast.problems, forecast.warnings
    config = resolved.config
    title = f"Plan of {resolved.name}"
    sizes = architecture_of(config.model, problems)
    if sizes is None:
        return Plan(title, tuple(rows), problems=tuple(problems), warnings=tuple(warnings))
    if work.longest > sizes.max_positions:
        problems.append(
            f"a conversation of {work.longest:,} tokens (prompt and longest reply) does not fit the model's "
            f"{sizes.max_positions:,} positions; lower the agent's chunk or reply lengths"
        )
    options = _with_adapter(config.model, options, problems)
    # A lack of this machine's memory, disk or packages does not concern a run that is planned for another.
    lacking = problems if here else warnings
    packages = low_bit_packages() if here else LOW_BIT_PACKAGES
    is_auto, options = options.optimizer.kind == "auto", _with_optimizer(options, device, packages)
    dtype = config.model.compute_type(cuda=device.cuda)
    memory = planned_memory(resolved, options, sizes, work.longest, device, problems)
    trained = sizes.parameters if options.lora is None else adapter_parameters(sizes, options.lora.rank)
    moments = moment_bytes(trained, options, cuda=device.cuda)
    rows += _parameter_rows(sizes, options, dtype, moments, device)
    if auto_loss(options) is not None:
        correction, reason = chosen_correction(config, cuda=device.cuda)
        rows += [("importance correction", f"{correction}, because {reason}")] if correction != "none" else []
    if options.plays:
        planned = PlannedModel(sizes, dtype, device, trained if options.lora else 0, work.longest)
        rows += _engine_rows(forecast, planned, memory, elsewhere=not here)
    if is_sharded(options, device.processes):
        lacking += _loading(loading_bytes(sizes, options, dtype), device.processes, rows)
    _check_memory(memory, device, _savings(options, config.engine, device), problems, warnings)
    if offloads(options, cuda=device.cuda):
        lacking += _host(moments, options)
        if is_auto:
            exact = _with_optimizer(options, device, kind="adamw")
            on_device = planned_memory(resolved, exact, sizes, work.longest, device, [])
            warnings += _fits_on_the_device(on_device, device)
    lacking += _disk(options, (4 if options.lora else BYTES[options.masters]) * trained + moments)
    return Plan(title, tuple(rows), memory, device.name, device.capacity, tuple(problems), tuple(warnings))


def _engine_rows(forecast: Forecast, planned: PlannedModel, memory: dict[str, int], *, elsewhere: bool) -> list[Row]:
    """Rows about the engine that `auto` stands for and about vLLM, which is judged.

    Nobody knows whether vLLM is installed on another machine, so a plan for one counts the engine `hf`, and warns if
    vLLM would not fit there.
    """
    config = forecast.resolved.config
    choices = [choice for choice in forecast.resolved.choices if choice.place == ("engine",)]
    rows: list[Row] = []
    if planned.device.processes > 1:
        if isinstance(config.engine, VllmEngineConfig) and not choices:
            forecast.problems.append(
                "engine: kind 'vllm' serves a run of one process; write kind: hf, or vllm_server for servers that all "
                "processes share"
            )
        return [("engine", "hf, because vLLM in a training process serves a run of one")] if choices else rows
    engine, problems = config.engine, forecast.problems
    for choice in choices:
        if elsewhere and planned.device.cuda:
            rows.append(("engine", "hf is planned; auto takes vllm where it is installed"))
            engine, problems = choice.auto.vllm(), forecast.warnings
            forecast.warnings += with_vllm(engine, memory, planned)
        else:
            reason = "no CUDA GPU is planned for" if elsewhere else choice.reason
            rows.append(("engine", f"{config.engine.kind}, because {reason}"))
    if isinstance(engine, VllmEngineConfig) and planned.device.cuda:
        rows.append(vllm_row(planned.vllm(engine), planned.longest))
        check_vllm(engine, planned.vllm(engine), planned.longest, problems, forecast.warnings)
    return rows


def _parameter_rows(
    sizes: Architecture, options: TrainerOptions, dtype: str, moments: int, device: Device
) -> list[tuple[str, str]]:
    kind = options.optimizer.kind_on(cuda=device.cuda, stochastic=options.stochastic)
    place = f", {moments / GIB:.1f} GiB of moments in the host's memory" if offloads(options, cuda=device.cuda) else ""
    rounding = ", stochastic rounding" if options.stochastic else ""
    what = "LoRA" if options.lora else f"all trained as {options.masters}{rounding}"
    rows = [("parameters", f"{sizes.parameters / 1e6:,.1f} M, {what}, {dtype}"), ("optimizer", f"{kind}{place}")]
    if device.processes > 1:
        part = "a part of" if is_sharded(options, device.processes) else "the whole of"
        rows.append(("processes", f"{device.processes}, each with {part} the model; memory is that of one"))
    return rows


def _savings(options: TrainerOptions, engine: EngineConfig, device: Device) -> str:
    """The settings that would take less memory and are off."""
    kind, full = options.optimizer.kind_on(cuda=device.cuda, stochastic=options.stochastic), options.lora is None
    steps = ["train.lora"] if full else []
    sharded = is_sharded(options, device.processes)
    if sharded:
        steps.append("more processes (the copy for sampling stays whole)" if options.plays else "more processes")
    elif device.cuda:
        steps.append("train.shard=fsdp2 over several GPUs")
    if device.cuda and kind == "adamw" and not (sharded and full):
        offload = " or adamw_offload" if full else ""
        steps.append(f"train.optimizer.kind=adamw_8bit{'_torchao' if options.stochastic else ''}{offload}")
    if full and not options.stochastic and not sharded:
        steps.append("train.master_weights=bfloat16_stochastic")
    if not options.gradient_checkpointing:
        steps.append("train.gradient_checkpointing=true")
    batch = " or engine.max_batch_tokens" if isinstance(engine, HfEngineConfig) else ""
    return ", ".join([*steps, f"a smaller train.micro_batch_tokens{batch}", "or another model"])


def _check_memory(
    memory: dict[str, int], device: Device, savings: str, problems: list[str], warnings: list[str]
) -> None:
    """A peak beyond the device's memory is a problem; one so near it that fragmentation decides is a warning."""
    peak = peak_bytes(memory)
    if peak > device.capacity:
        problems.append(
            f"about {peak / GIB:.1f} GiB are needed, but {device.name} has {device.capacity / GIB:.1f} GiB; "
            f"use {savings}"
        )
    elif device.cuda and peak > (1 - SPARE_FRACTION) * device.capacity:
        warnings.append(
            f"the peak leaves less than {SPARE_FRACTION:.0%} of {device.name} to its driver and to the gaps between "
            "allocations; a run may have to halve train.micro_batch_tokens, or fail"
        )


def _with_adapter(model: ModelConfig, options: TrainerOptions, problems: list[str]) -> TrainerOptions:
    """The options with the adapter that `model` already has, which is trained further; unchanged without one.

    An adapter without a rank is planned for as LoRA of the default rank.
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


def _with_optimizer(
    options: TrainerOptions,
    device: Device,
    packages: Collection[str] = LOW_BIT_PACKAGES,
    kind: OptimizerKind | None = None,
) -> TrainerOptions:
    """The options with an optimizer of `kind`; None: that of `auto` on `device` where `packages` can be used."""
    if is_sharded(options, device.processes) and options.lora is None:
        kind = "adamw"
    chosen = kind or options.optimizer.kind_on(cuda=device.cuda, stochastic=options.stochastic, packages=packages)
    return options.model_copy(update={"optimizer": options.optimizer.model_copy(update={"kind": chosen})})


def _fits_on_the_device(memory: dict[str, int], device: Device) -> list[str]:
    """A remark if float32 moments, counted in `memory`, fit on the device, so that `auto` need not offload them."""
    peak = peak_bytes(memory)
    if peak > (1 - SPARE_FRACTION) * device.capacity:
        return []
    return [
        f"train.optimizer.kind=adamw fits {device.name} too ({peak / GIB:.1f} GiB at its peak), without copies to the "
        "host and back"
    ]


def device_of(model: ModelConfig, processes: int = 1) -> Device:
    """The device that `model` is trained on here, for each of `processes`."""
    if torch.cuda.is_available() and model.device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, properties.total_memory, cuda=True, processes=processes)
    name = "this machine's memory" if processes == 1 else f"1/{processes} of this machine's memory"
    return Device(f"{name} (no GPU is used)", (memory_bytes() or 0) // processes, cuda=False, processes=processes)


def _loading(size: int, processes: int, rows: list[Row]) -> list[str]:
    """A problem if the host's memory cannot hold the model, of `size` bytes, in each of `processes` while they read it.

    A row for it is added to `rows`.
    """
    rows.append(("host memory at the start", f"{processes} x {size / GIB:,.1f} GiB, on one machine"))
    available = memory_bytes() or 0
    if processes * size <= available:
        return []
    return [
        f"each of {processes} processes reads the whole model first, which takes {processes * size / GIB:.1f} GiB of "
        f"the host's memory; it has {available / GIB:.1f} GiB. Use fewer processes on a machine"
    ]


def _host(moments: int, options: TrainerOptions) -> list[str]:
    """A problem if the host's memory cannot hold the moments.

    Pinned memory comes in powers of two, which adds about a third at the usual sizes.
    """
    available, kind = memory_bytes() or 0, "adamw_8bit_torchao" if options.stochastic else "adamw_8bit"
    if moments * 4 / 3 <= available:
        return []
    return [
        f"the optimizer's moments take about {moments * 4 / 3 / GIB:.1f} GiB of the host's memory, which has "
        f"{available / GIB:.1f} GiB; use train.optimizer.kind={kind} (extra "
        f"{'torchao' if options.stochastic else 'bitsandbytes'})"
    ]


def _disk(options: TrainerOptions, checkpoint: int) -> list[str]:
    """Problems of disk space for checkpoints of `checkpoint` bytes each, with the one being written."""
    needed = checkpoint * (options.keep_checkpoints + 1)
    free = shutil.disk_usage(".").free
    if needed <= free:
        return []
    return [f"checkpoints take about {needed / GIB:.1f} GiB, but {free / GIB:.1f} GiB of disk are free"]

"""Decoding steps of memory_agent with the HF engine: rows, milliseconds, kernels, and the time against its bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from benchmarks.floor import distinct
from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Expected
from benchmarks.gpu.models import Subject, subject
from benchmarks.measure import memory_bandwidth
from benchmarks.workloads import Writer
from memfactory.config.optimizer import LoraOptions
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.formats.recurrent_prompts import UPDATE_PROMPT
from memfactory.model.chat import ChatFormat
from memfactory.plan.footprint import Architecture, architecture
from memfactory.policy.weights import trainable
from memfactory.text import fill
from memfactory.types import Message, Sampling

# As the published config of the 4B model has them.
LIMITS = HfEngineConfig(max_batch=64, max_batch_tokens=196_608)
# Kernels of a layer and of all else, counted by benchmarks/launches.py; a real GPU splits some products and sums.
KERNELS = {"first": 36, "later": 46}
BESIDES, SPLIT = 32, 1.25
# Seconds of a launch on a slow host.
SLOW_LAUNCH = 15e-6
# Rows that fit at one time: with a prompt of their own those of prompts and replies of 4,200 tokens.
LEAST_ROWS = {"first": 64, "later": 44}
# Seconds of one kind of weights in both chunks, loading included.
SECONDS = 45
GROUPS = 4
Loaded = tuple[PreTrainedModel, ChatFormat]


@dataclass(frozen=True)
class Lengths:
    """Words of a prompt's parts, tokens of a reply, and the steps that are timed."""

    question: int
    chunk: int
    memory: int
    reply: int
    steps: int


@dataclass(frozen=True)
class Load:
    """The work of a step: the model, which chunk, rows, steps that are timed, and seconds that reading alone takes."""

    sizes: Architecture
    chunk: str
    rows: int
    steps: int
    bound: float


def run(check: Check) -> None:
    """Time float32 weights, bfloat16 weights and adapters in the first chunk and in a later one."""
    report, model = check.report, subject(check)
    bandwidth = memory_bandwidth(check.device, 0.02 if check.small else 1.0)
    kinds = (("bfloat16", "bfloat16", None), ("float32", "float32", None), ("LoRA", "bfloat16", 16))
    for name, masters, rank in kinds[:1] if check.small else kinds:
        if not check.has_time(f"{model.name}, {name}", 0 if check.small else SECONDS):
            continue
        with report.guarded(f"{model.name}, {name}"):
            network, chat = model.loaded(check, masters=masters, frozen=rank is not None)
            if rank is not None:
                network = trainable(network, LoraOptions(rank=rank), check.dtype, 0).get_base_model()
            decode(check, f"{model.name}, {name}", model, (network, chat), bandwidth)
            del network
        check.fresh()


def decode(check: Check, name: str, subject: Subject, loaded: Loaded, bandwidth: float) -> None:
    """Both chunks with one kind of weights."""
    network, chat = loaded
    lengths = Lengths(20, 40, 10, 24, 3) if check.small else Lengths(60, 2500, 400, 1024, 30)
    sizes = architecture(network.config)
    for chunk in ("first", "later"):
        check.fresh()
        label, prompts = f"{name}, {chunk} chunk", []
        engine = HfEngine(network, chat, LIMITS, compute_dtype=check.dtype)
        for number, text in enumerate(texts(Writer(subject.folder, 0), lengths, chunk, 2 if check.small else 16)):
            messages = [Message("user", text)]
            prompts.append(tuple(chat.prompt_ids(messages)))
            engine.submit(number, messages, Sampling(lengths.reply, seed=number))
        with check.refusals() as refusals:
            entering = check.seconds(engine.step)
        check.report.judged(f"{label}, sharing", not refusals, "; ".join(refusals) or "shared prefixes")
        check.report.measured(f"{label}, first step", entering, "s", note=f"{sum(map(len, prompts)):,} prompt tokens")
        # The engine has no public count of the rows that decode.
        rows = len(engine._rows)
        bound = least_bytes(sizes, prompts[:rows]) / bandwidth
        measure(check, engine, f"{label}", Load(sizes, chunk, rows, lengths.steps, bound))
        if not check.small:
            check.report.measured(f"{label}, peak memory", check.peak() / 2**30, "GiB")
        engine.cancel()


def measure(check: Check, engine: HfEngine, label: str, load: Load) -> None:
    """Milliseconds and kernels of a step, all rows decoding."""
    report, small = check.report, check.small
    report.measured(f"{label}, rows", load.rows, "", None if small else Expected(low=LEAST_ROWS[load.chunk]))
    for _ in range(3):
        engine.step()
    each = check.seconds(lambda: [engine.step() for _ in range(load.steps)]) / load.steps
    kernels = load.sizes.layers * KERNELS[load.chunk] + BESIDES
    slowest = None if small else Expected(high=kernels * SLOW_LAUNCH * 1e3)
    report.measured(f"{label}, a step", each * 1e3, "ms", slowest, f"{load.rows / each:,.0f} tokens/s")
    note = f"of {load.bound * 1e3:.2f} ms to read weights and distinct prompts once; the goal is 2"
    report.measured(f"{label}, over its bound", each / load.bound, "", note=note)
    if small:
        return
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        engine.step()
        check.wait()
    launched = [event for event in recorded.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA]
    report.measured(f"{label}, kernels", len(launched), "", Expected(high=kernels * SPLIT))
    busy = sum(event.self_device_time_total for event in launched)
    report.measured(f"{label}, GPU busy", busy / 1e3, "ms", note=slowest_kernels(recorded))


def slowest_kernels(recorded: Any, count: int = 5) -> str:
    """The kernels of a step that took longest, with their milliseconds."""
    averages = sorted(recorded.key_averages(), key=lambda event: -event.self_device_time_total)[:count]
    return "; ".join(f"{event.key[:40]} {event.self_device_time_total / 1e3:.2f}" for event in averages)


def texts(writer: Writer, lengths: Lengths, chunk: str, rows: int) -> Iterator[str]:
    """Update prompts of memory_agent in groups of `rows`; in a later chunk each row has a memory of its own length."""
    for _ in range(GROUPS):
        question, section = writer.words(lengths.question), writer.words(lengths.chunk)
        for row in range(rows):
            memory = "none" if chunk == "first" else writer.words(lengths.memory + row)
            yield fill(UPDATE_PROMPT, {"question": question, "memory": memory, "section": section})


def least_bytes(sizes: Architecture, prompts: list[tuple[int, ...]]) -> float:
    """Bytes that a step must read: all weights, and each distinct token's keys and values, in bfloat16."""
    return 2.0 * sizes.parameters + float(distinct(prompts).tokens) * sizes.kv_bytes("bfloat16")

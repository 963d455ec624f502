"""Where the time of one training step goes, operation by operation and phase by phase, by torch.profiler."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

TOP = 15


def write_profile(side: Any, path: Path) -> None:
    """Profile one step of `side` and write, for each phase, the operations that took longest."""
    cuda = side.clock.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    side.clock.reset()
    side.clock.intervals = []
    with profile(activities=activities) as profiler:
        mark = _mark()
        side.step(1_000)
    events = list(profiler.events())
    offset = next(event.time_range.start for event in events if event.name == "bench: begin") - mark / 1e3
    text = "\n".join(_table(name, *phases) for name, phases in _by_phase(events, side.clock.intervals, offset).items())
    path.write_text(text, encoding="utf-8")
    side.clock.intervals = None


def _mark() -> int:
    """Leave a mark among the profiler's events; when it was left, by the clock of the phases, in ns."""
    now = time.time_ns()
    with torch.profiler.record_function("bench: begin"):
        pass
    return now


def _by_phase(
    events: list[Any], intervals: list[tuple[str, int, int]], offset: float
) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """Microseconds and calls of every operation by the innermost phase that it began in."""
    # Later begun is further inside; phases nest, so the last begun one that has not ended is the innermost.
    spans = sorted((begun / 1e3 + offset, ended / 1e3 + offset, name) for name, begun, ended in intervals)
    starts = [begun for begun, _, _ in spans]
    phases: dict[str, tuple[Counter[str], Counter[str]]] = defaultdict(lambda: (Counter(), Counter()))
    for event in events:
        if event.name == "bench: begin":
            continue
        at = bisect_right(starts, event.time_range.start) - 1
        while at >= 0 and spans[at][1] < event.time_range.start:
            at -= 1
        name = spans[at][2] if at >= 0 else "other"
        on_device = str(event.device_type).endswith("CUDA")
        own = event.self_device_time_total if on_device else event.self_cpu_time_total
        label = f"{event.name} (device)" if on_device else event.name
        phases[name][0][label] += own
        phases[name][1][label] += event.count
    return phases


def _table(phase: str, seconds: Counter[str], calls: Counter[str]) -> str:
    total = sum(seconds.values())
    lines = [
        f"## {phase}: {total / 1e6:.2f} s of operations",
        "",
        "| operation | ms | share | calls |",
        "|---|--:|--:|--:|",
    ]
    for name, taken in seconds.most_common(TOP):
        lines.append(f"| {name} | {taken / 1e3:.1f} | {taken / max(total, 1e-9):.0%} | {calls[name]} |")
    return "\n".join([*lines, ""])

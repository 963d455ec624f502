"""The measuring tools of benchmarks: seconds, tokens and FLOPs by phase, the machine's peaks, peak memory."""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from memfactory.model.linear import multiply

PHASES = ("prefill", "decode", "old", "reference", "forward", "backward", "optimizer", "weights", "other")


class Clock:
    """Seconds of a step by phase, each second in the innermost phase only.

    On one CPU thread they are seconds of the processor, which other work on the machine disturbs least; otherwise they
    are those of the wall clock. `slots` counts the tokens that went through the model by phase, padding included, and
    `calls` its calls; `flops` is filled while `counting`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        self.intervals: list[tuple[str, int, int]] | None = None
        self.reset()

    def reset(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.slots: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self._open = ["other"]
        self._since = self.now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        begun = time.time_ns()
        try:
            yield
        finally:
            self._charge()
            self._open.pop()
            if self.intervals is not None:
                self.intervals.append((name, begun, time.time_ns()))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as a phase of its own."""

        @wraps(function)
        def within(*args: Any, **named: Any) -> Any:
            with self.phase(name):
                return function(*args, **named)

        return within

    def watch(self, model: Any) -> None:
        """Count the tokens that go through the decoder, and tell prefilling from decoding by their number a row."""
        entered: list[Any] = []

        def before(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            ids = next(
                value for value in (named.get("input_ids"), named.get("inputs_embeds"), *args) if value is not None
            )
            prefills = self._open[-1] == "decode" and ids.shape[1] > 1
            context = self.phase("prefill") if prefills else nullcontext()
            context.__enter__()
            entered.append(context)
            self.slots[self._open[-1]] += ids.shape[0] * ids.shape[1]
            self.calls[self._open[-1]] += 1

        def after(*_: Any) -> None:
            entered.pop().__exit__(None, None, None)

        decoder = model.get_decoder()
        decoder.register_forward_pre_hook(before, with_kwargs=True)
        decoder.register_forward_hook(after, always_call=True)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the floating-point operations of matrix products and attention; everything takes longer meanwhile."""
        with _FlopCount(self):
            yield

    @property
    def current(self) -> str:
        return self._open[-1]

    def _charge(self) -> None:
        # Waiting for every decoded token would slow decoding down; its phase as a whole is waited for.
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = self.now()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


class _FlopCount(TorchDispatchMode):
    """Adds the FLOPs of torch's own formulas to the clock's phase; causal attention counts half."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = _formula(func)
        if count is None:
            # In inference mode whole layers come here; their operations are counted.
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        self.clock.flops[self.clock.current] += count(func, args, kwargs, out)
        return out


_CPU_ATTENTION = re.compile(r"scaled_dot_product\w*_for_cpu(_backward)?$")


def _formula(func: Any) -> Callable[..., int] | None:
    """How the operations of `func` are counted; None for one that is none, or is made of others."""
    if func._schema.name == "mkldnn::_linear_pointwise":
        return _linear_flops
    if _CPU_ATTENTION.search(func._schema.name):
        return _attention_flops
    return _registered_flops if func._overloadpacket in flop_registry else None


def _linear_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Operations of a product with weights in oneDNN's layout, whose shape is not theirs."""
    return int(2 * out.numel() * args[0].shape[-1])


def _registered_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    count = int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
    return count // 2 if _named(func, args, kwargs).get("is_causal") else count


def _attention_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Operations of a CPU attention kernel, for which torch has no formula: two products, five backwards."""
    bound = _named(func, args, kwargs)
    query, key, value = bound["query"], bound["key"], bound["value"]
    one = 2 * query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    backward = "backward" in func._schema.name
    products = 3 * query.shape[3] + 2 * value.shape[3] if backward else query.shape[3] + value.shape[3]
    return int(one * products) // (2 if bound.get("is_causal") else 1)


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The operation's arguments by name."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of the fastest of many products of square matrices, by the same clock as the phases.

    Torch's own product and that of `model.linear` take turns: on some processors one is twice as fast.
    """
    size = 8192 if device.type == "cuda" else 1024
    clock = Clock(device)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < until:
        for product in (torch.mm, multiply):
            clock.reset()
            with clock.phase("product"):
                product(left, right)
            best = max(best, 2 * size**3 / max(clock.seconds["product"], 1e-9))
    return best


def memory_bandwidth(device: torch.device, seconds: float = 1.0) -> float:
    """Bytes a second that a copy reads and writes, the fastest of many."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    clock = Clock(device)
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < until:
        clock.reset()
        with clock.phase("copy"):
            target.copy_(source)
        best = max(best, 2 * source.nbytes / max(clock.seconds["copy"], 1e-9))
    return best


def resident_bytes() -> tuple[float, float]:
    """Memory of this process that is resident now, and the most that ever was."""
    status = Path("/proc/self/status")
    if not status.is_file():
        most = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return most, most
    # Not getrusage: on Linux a new process inherits its parent's peak there.
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    now, most = (float(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and software of a measurement."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = f"{named[0]} x {len(named)}" if named else cpu
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def child_environment() -> dict[str, str]:
    """The environment of a process that runs a benchmark again, from any folder."""
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}

"""The surroundings of a section: its device, its time, its folder and its report."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.findings import Report

# Words of the warnings that a fast way was refused.
REFUSALS = ("not shared", "not possible", "out of memory", "no room for a copy")


@dataclass(frozen=True)
class Check:
    """One section that runs. `small`: in miniature on a CPU. `deadline`: by `time.monotonic`, when it is stopped."""

    report: Report
    folder: Path
    small: bool
    deadline: float

    @staticmethod
    @contextmanager
    def refusals() -> Iterator[list[str]]:
        """The warnings that the toolkit gives meanwhile about fast ways that it does not take."""
        texts: list[str] = []

        class Collector(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if any(words in record.getMessage() for words in REFUSALS):
                    texts.append(record.getMessage())

        handler, log = Collector(logging.WARNING), logging.getLogger("memfactory")
        log.addHandler(handler)
        try:
            yield texts
        finally:
            log.removeHandler(handler)

    @property
    def device(self) -> torch.device:
        """The first GPU, or the CPU in miniature."""
        return torch.device("cpu") if self.small else torch.device("cuda", 0)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensor cores, on a CPU as well."""
        return torch.bfloat16

    @property
    def left(self) -> float:
        """Seconds until the section is stopped."""
        return self.deadline - time.monotonic()

    @property
    def memory(self) -> int:
        """Bytes of memory that the GPU has; 0 in miniature."""
        return 0 if self.small else int(torch.cuda.get_device_properties(self.device).total_memory)

    def has_time(self, name: str, seconds: float) -> bool:
        """Whether `seconds` are left; otherwise the measurement `name` is reported as skipped."""
        if self.left >= seconds:
            return True
        self.report.skipped(name, f"it takes about {seconds:.0f} s, and {max(self.left, 0):.0f} s are left")
        return False

    def wait(self) -> None:
        """Wait for the GPU."""
        if not self.small:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of the wall clock that `work` takes, the GPU's included."""
        self.wait()
        begun = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begun

    def fresh(self) -> None:
        """Free the memory that nothing holds any more, and measure its peak from here on."""
        gc.collect()
        if not self.small:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        """The most bytes that torch had allocated on the GPU since `fresh`; NaN in miniature."""
        return float("nan") if self.small else float(torch.cuda.max_memory_allocated(self.device))

"""Versions, and the ceilings of the card: products, copies and launches, against which all else is read."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Expected
from benchmarks.measure import machine, matmul_peak, memory_bandwidth
from memfactory.plan.flops import device_peak

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "torchao", "liger-kernel", "vllm")
# Bytes a second of the cards' memory, from the vendor's data sheets; the first name that occurs counts.
BANDWIDTHS = (("H200", 4.8e12), ("H100 PCIe", 2.0e12), ("H100", 3.35e12), ("A100", 1.55e12), ("L40S", 0.86e12))
# Fractions of the data sheet that large products and copies reach on a healthy card.
PRODUCTS, COPIES = Expected(0.6, 1.05), Expected(0.75, 1.35)
# An eager launch costs a few microseconds on a healthy host; many times as much means a slow or busy processor.
LAUNCH = Expected(1.0, 15.0)


def run(check: Check) -> None:
    """Measure the machine."""
    report, device = check.report, check.device
    installed = {name: installed_version(name) for name in PACKAGES}
    report.noted("versions", f"Python {platform.python_version()}", ", ".join(f"{n} {v}" for n, v in installed.items()))
    with report.guarded("card"):
        cuda = "" if check.small else f"{check.memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"
        report.noted("card", str(machine(device)["device"]), cuda)
    seconds = 0.02 if check.small else 1.0
    dtype = torch.float32 if check.small else check.dtype
    with report.guarded("matrix products"):
        rate, peak = matmul_peak(device, dtype, seconds), device_peak(device)
        report.measured("matrix products", rate / 1e12, "TFLOP/s")
        if peak is not None:
            report.measured("of the data sheet's product", rate / peak, "", PRODUCTS)
    with report.guarded("copies"):
        rate = memory_bandwidth(device, seconds)
        report.measured("copies", rate / 1e12, "TB/s")
        sheet = None if check.small else known_bandwidth(torch.cuda.get_device_name(device))
        if sheet is not None:
            report.measured("of the data sheet's bandwidth", rate / sheet, "", COPIES)
    with report.guarded("launch"):
        each = launch_seconds(check, 200 if check.small else 20_000)
        expected = None if check.small else LAUNCH
        report.measured("launch", each * 1e6, "us", expected, "times the kernels of a decoding step: its floor")


def installed_version(name: str) -> str:
    """The version of a package; "none" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def known_bandwidth(name: str) -> float | None:
    """The bandwidth of a card in its data sheet; None for one that is not in the table."""
    return next((rate for known, rate in BANDWIDTHS if known in name), None)


def launch_seconds(check: Check, count: int) -> float:
    """Seconds of the host to launch one small kernel."""
    values = torch.zeros(8, device=check.device)
    for _ in range(100):
        values.add_(1)
    check.wait()
    begun = time.perf_counter()
    for _ in range(count):
        values.add_(1)
    took = time.perf_counter() - begun
    check.wait()
    return took / count

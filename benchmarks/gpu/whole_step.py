"""A whole training step of memory_agent with the 1.7B model, by `benchmarks.step`: seconds by phase, MFU, memory."""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks import step
from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Expected
from benchmarks.gpu.models import LARGE_GPU, MEDIUM
from benchmarks.report import TRAINING, phase_median, totals
from memfactory.plan.flops import device_peak

SIZE = ("--group-size 8 --chunks 2 --chunk-tokens 2500", "--new-tokens 256 --dtype bfloat16 --device cuda")
SMALL = (
    "--layers 1 --hidden 64 --intermediate 96 --heads 2 --kv-heads 1 --head-dim 32 --vocabulary 2500",
    "--group-size 2 --chunks 1 --chunk-tokens 40 --new-tokens 4",
)
ONE_SIDE = "memory_agent --sides product --repeats 1 --no-memory"
# Between the estimate for training passes of the 4B model and the goal; a smaller model has smaller products.
MFU = Expected(low=0.15)


def run(check: Check) -> None:
    """Take one timed step, after one that warms up and counts operations."""
    file = check.folder / "step.json"
    settings = ["train.gradient_checkpointing=true", "train.optimizer.kind=adamw"]
    if not check.small and check.memory < LARGE_GPU:
        # There is no room for the moments of all weights.
        settings.append("train.lora.rank=16")
    size = SMALL if check.small else (*SIZE, f"--model {MEDIUM}")
    words = " ".join([ONE_SIDE, *size]).split()
    check.fresh()
    step.main([*words, "--json", str(file), "--set", *settings])
    report_step(check, json.loads(file.read_text(encoding="utf-8")))
    if not check.small:
        check.report.measured("peak memory", check.peak() / 2**30, "GiB")


def report_step(check: Check, measured: dict[str, Any]) -> None:
    """The phases of the step, and their use of the card."""
    report, side = check.report, measured["sides"]["product"]
    (whole,) = totals(side)
    for phase, seconds in side["seconds"][0].items():
        report.measured(phase, seconds, "s", note=f"{seconds / whole:.0%} of the step")
    report.measured("step", whole, "s")
    training = sum(phase_median(side, phase) for phase in TRAINING)
    peak = device_peak(torch.device("cuda", 0)) if not check.small else None
    used = measured["model_flops"] / training / (peak or measured["peak_flops"])
    report.measured("MFU of training", used, "", None if check.small else MFU, "the goal is 0.4")
    decoding = phase_median(side, "decode")
    if decoding and side["calls"].get("decode"):
        share = measured["decode_bytes"]["product"] / decoding / measured["bandwidth"]
        report.measured("decoding, of a copy's bandwidth", share, "", note="every row's prompt counted by itself")

"""The measurements of benchmarks/step.py as tables in Markdown."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.measure import PHASES

TRAINING = ("old", "reference", "forward", "backward", "optimizer")


def totals(side: dict[str, Any]) -> list[float]:
    """Seconds of each timed step."""
    return [sum(step.values()) for step in side["seconds"]]


def phase_median(side: dict[str, Any], phase: str) -> float:
    """The median of a phase's seconds over the timed steps."""
    return median(step.get(phase, 0.0) for step in side["seconds"])


def ratio(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The speed-up of `first` over `second`: the median of the ratios of steps taken side by side."""
    return median(b / a for a, b in zip(totals(first), totals(second), strict=True))


def print_report(report: dict[str, Any]) -> None:
    """Print the hardware, a table for each side, and the sides against each other."""
    machine, sides, peak = report["machine"], report["sides"], report["peak_flops"]
    print(
        f"{machine['device']}, {machine['threads']} thread(s), torch {machine['torch']}: "
        f"{peak / 1e9:.1f} GFLOP/s in matrix products, {report['bandwidth'] / 1e9:.1f} GB/s in copies\n"
    )
    if "tokens" in report:
        tokens = report["tokens"]
        print(f"{tokens['turns']} conversations, {tokens['prompts']:,} prompt and {tokens['replies']:,} reply tokens\n")
    for name, side in sides.items():
        print_phases(name, side, report)
    print_sides(report)


def print_phases(name: str, side: dict[str, Any], report: dict[str, Any]) -> None:
    """Seconds, tokens and operations of one side by phase; shares are of the measured peak."""
    peak, least = report["peak_flops"], report.get("needed", {"flops": {}, "tokens": {}})
    print(f"| {name} | seconds | tokens through the model | GFLOP done | of peak | GFLOP needed | s needed |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for phase in PHASES:
        seconds = phase_median(side, phase)
        if seconds < 5e-4 and phase not in side["flops"]:
            continue
        done, need = side["flops"].get(phase, 0), least["flops"].get(phase, 0)
        counted = f"{done / 1e9:.1f} | {done / peak / max(seconds, 1e-9):.0%}" if side["flops"] else " | "
        slots = side["slots"].get(phase, 0)
        print(f"| {phase} | {seconds:.2f} | {slots:,} | {counted} | {need / 1e9:.1f} | {need / peak:.2f} |")
    whole = median(totals(side))
    done, need = sum(side["flops"].values()), sum(least["flops"].values())
    counted = f"{done / 1e9:.1f} | {done / peak / whole:.0%}" if side["flops"] else " | "
    print(f"| step | {whole:.2f} | | {counted} | {need / 1e9:.1f} | {need / peak:.2f} |")
    decoding = phase_median(side, "decode")
    # An engine that is not of this process's model cannot be watched.
    if "decode_bytes" in report and decoding and side["calls"].get("decode"):
        share = report["decode_bytes"][name] / decoding / report["bandwidth"]
        print(f"\nDecoding took {side['calls'].get('decode', 0)} passes at {share:.0%} of the bandwidth of a copy.")
    training = sum(phase_median(side, phase) for phase in TRAINING)
    if "model_flops" in report and training:
        share = report["model_flops"] / training / peak
        print(f"\nTraining took {training:.2f} s: MFU {share:.0%}, every conversation counted by itself.")
    print()


def print_sides(report: dict[str, Any]) -> None:
    """The sides against the first, against the floor, and their memory."""
    sides = report["sides"]
    first = next(iter(sides))
    floor = report.get("needed", {}).get("seconds")
    print(f"| side | seconds a step (lowest - highest) | times {first} | times the floor | peak MB | of it the step |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, side in sides.items():
        seconds = totals(side)
        memory = report.get("memory", {}).get(name)
        peak = "" if memory is None else f"{memory['peak'] / 1e6:.0f}"
        own = "" if memory is None else f"{(memory['peak'] - memory['before']) / 1e6:.0f}"
        above = "" if floor is None else f"{median(seconds) / floor:.2f}"
        print(
            f"| {name} | {median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f}) | "
            f"{ratio(sides[first], side):.2f} | {above} | {peak} | {own} |"
        )
    if floor is not None:
        print(f"\nFloor: {floor:.2f} s, each distinct prefix once at the measured peak.")

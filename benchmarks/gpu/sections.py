"""The sections in the order of their worth, with the seconds that each may take on a GPU. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """`name` is also the module `benchmarks.gpu.NAME`, whose `run` does the work in about `seconds`."""

    name: str
    seconds: float
    title: str


SECTIONS = (
    Section("machine", 25, "versions, and the ceilings of this card"),
    Section("attention", 40, "the attention kernels against float64"),
    Section("tiny", 100, "trainings of the embedded model, and their resumption"),
    Section("decoding", 150, "decoding steps of a 4B model: rows, kernels, time"),
    Section("training", 200, "training passes of a 4B model: MFU, memory against the plan"),
    Section("whole_step", 90, "a whole step of a 1.7B model by phase"),
)

"""Trainings of the embedded model `tiny` in every way that a GPU has, against the same training on the processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Expected
from memfactory.api.training import TrainResult, train

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "quickstart.yaml"
ON_CPU, FLOAT32 = "float32 on the processor", "float32"
HALF: dict[str, Any] = {"model.dtype": "bfloat16", "train.optimizer.kind": "adamw"}
UNSHARED: dict[str, Any] = {"train.packing": "padded", "engine.share_prefixes": False}
# The mean distance of log-probabilities at sampling and in training; a CPU has 2e-4 to 2e-3 in bfloat16.
MISMATCH, MISMATCH_FLOAT32 = Expected(high=5e-3), Expected(high=1e-5)
# Without an update in between, policy and reference are one model.
NO_KL = Expected(-1e-6, 1e-6)
# Of the gradient's norm, against that of the processor, if the same tokens were sampled.
SAME_NORM = Expected(0.99, 1.01)
# A training takes about this long on a GPU, after the first.
SECONDS = 12


@dataclass(frozen=True)
class Way:
    """One way to train: overrides of the quickstart. `refused`: a warning that the fast way is refused is right."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: bool = False


def ways() -> Iterator[Way]:
    """Every way that the installed packages allow."""
    # Tree attention has no kernel for float32 on CUDA.
    yield Way(FLOAT32, {"model.dtype": "float32", "train.optimizer.kind": "adamw"}, refused=True)
    yield Way("bfloat16", HALF)
    yield Way("LoRA", HALF | {"train.lora.rank": 8})
    yield Way("checkpointing", HALF | {"train.gradient_checkpointing": True})
    yield Way("bfloat16 weights", HALF | {"train.master_weights": "bfloat16_stochastic"})
    yield Way("adamw_offload", HALF | {"train.optimizer.kind": "adamw_offload"})
    for kind, package in (("adamw_8bit", "bitsandbytes"), ("adamw_8bit_torchao", "torchao")):
        if find_spec(package) is not None:
            yield Way(kind, HALF | {"train.optimizer.kind": kind})
    yield Way("padded, nothing shared", HALF | UNSHARED)


def run(check: Check) -> None:
    """Train on the processor, then in every way on the GPU, and resume one run."""
    report = check.report
    reference: TrainResult | None = None
    with report.guarded(ON_CPU):
        reference, _ = trained(check, Way(ON_CPU, {"model.device": "cpu", "model.dtype": "float32"}))
        judge(check, ON_CPU, reference, MISMATCH_FLOAT32)
    last = reference
    for way in () if check.small else ways():
        if not check.has_time(way.name, SECONDS):
            continue
        with report.guarded(way.name):
            result, refusals = trained(check, way)
            judge(check, way.name, result, MISMATCH_FLOAT32 if way.name == FLOAT32 else MISMATCH)
            if not way.refused:
                report.judged(f"{way.name}, refused", not refusals, "; ".join(refusals) or "nothing")
            if way.name == FLOAT32 and reference is not None:
                compare(check, result, reference)
            if way.name == "bfloat16":
                last = result
    if last is not None and check.has_time("resumption", SECONDS):
        with report.guarded("resumption"):
            resumed = train(str(last.folder), {"train.steps": steps(check) + 1}, resume=last.folder)
            report.measured("resumption, steps", len(resumed.metrics), "", Expected(steps(check) + 1, steps(check) + 1))


def steps(check: Check) -> int:
    """Optimizer steps of each training."""
    return 1 if check.small else 2


def trained(check: Check, way: Way) -> tuple[TrainResult, list[str]]:
    """A short run of the quickstart in one way, and its warnings about ways that were refused."""
    tasks, group = (1, 2) if check.small else (4, 6)
    settings = {
        "model.device": "cpu" if check.small else "cuda",
        "train.steps": steps(check),
        "train.prompts_per_step": tasks,
        "train.group_size": group,
        "train.eval_every": 0,
        "train.eval_at_start": False,
        "train.eval_at_end": False,
        "train.save_every": 1,
        "train.loss.kl_coef": 0.01,
        "trackers": [],
    }
    if check.small:
        settings |= {"agent.max_chunks": 1, "agent.memory_tokens": 4, "agent.answer_tokens": 4}
        settings |= {"data.train.rows": 4, "train.count_zero_variance": True}
    folder = check.folder / way.name.replace(" ", "-").replace(",", "")
    with check.refusals() as refusals:
        result = train(CONFIG, settings | way.settings, output=folder)
    return result, refusals


def judge(check: Check, name: str, result: TrainResult, mismatch: Expected) -> None:
    """The metrics of the first step; a run without them raises KeyError."""
    first, report = result.metrics[0], check.report
    report.measured(f"{name}, sampler difference", first["sampler_difference/mean"], "nats", mismatch)
    report.measured(f"{name}, KL in step 1", first["kl"], "nats", NO_KL)
    seconds = sum(row["seconds"] for row in result.metrics)
    report.measured(f"{name}, time", seconds, "s", note=f"reward {first['reward']:.3g}")


def compare(check: Check, result: TrainResult, reference: TrainResult) -> None:
    """The same step on the GPU and on the processor: the same tokens, and the same gradient."""
    ours, theirs = result.metrics[0], reference.metrics[0]
    reward = theirs["reward"]
    check.report.measured("float32, reward in step 1", ours["reward"], "", Expected(reward - 1e-6, reward + 1e-6))
    check.report.measured(
        "float32, gradient of the processor's", ours["grad_norm"] / theirs["grad_norm"], "", SAME_NORM
    )

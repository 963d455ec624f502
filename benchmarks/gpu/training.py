"""Training passes of a published model: seconds, MFU, and peak memory against the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Expected
from benchmarks.gpu.models import Subject, subject
from benchmarks.measure import matmul_peak
from benchmarks.memory import turns
from memfactory.config.grpo import GrpoOptions
from memfactory.environment import memory_bytes
from memfactory.model.loading import load_architecture
from memfactory.plan.flops import device_peak, training_flops
from memfactory.plan.footprint import Architecture, Load, architecture, memory_by_component, phase_bytes
from memfactory.plan.plan import SPARE_FRACTION
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.pass_size import pass_size
from memfactory.policy.policy import Policy

# An estimate for today's kernels; 0.4 is the goal.
MFU = Expected(low=0.18)
PLAN = Expected(0.9, 1.1)
KL = Expected(-1e-6, 1e-6)
# Seconds of one setting, loading included.
SECONDS = 40


@dataclass(frozen=True)
class Setting:
    """One way to train; `options` are those of GRPO. Without `fused` layers are those of transformers."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    fused: bool = True


CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True, "loss": {"kl_coef": 0.001, "weighting": "turn"}}
SETTINGS = (
    Setting("full, checkpointing, KL", CHECKPOINTED),
    Setting("LoRA, checkpointing, KL", CHECKPOINTED | {"lora": {"rank": 16}}),
    Setting("bfloat16 weights, checkpointing, KL", CHECKPOINTED | {"master_weights": "bfloat16_stochastic"}),
    Setting("full, 4,096 tokens a pass", {"micro_batch_tokens": 4096, "loss": {"weighting": "turn"}}),
    Setting("full, checkpointing, KL, plain layers", CHECKPOINTED, fused=False),
)


def run(check: Check) -> None:
    """Measure every setting that fits into the time and, by the plan, into the memory."""
    model = subject(check)
    settings = SETTINGS[:2] if check.small else SETTINGS
    for setting in settings:
        name = f"{model.name}, {setting.name}"
        if not check.has_time(name, 0 if check.small else SECONDS):
            continue
        check.fresh()
        with check.report.guarded(name):
            train(check, model, setting, name)
    check.fresh()


def train(check: Check, model: Subject, setting: Setting, name: str) -> None:
    """One setting: the reference's scores, the gradient, and an update."""
    options = GrpoOptions(optimizer={"kind": "adamw" if check.small else "adamw_offload"}, **setting.options)
    described = load_architecture(model.config(check))
    sizes, micro = architecture(described), pass_size(options, described, cpu=check.small)
    load = Load(
        dtype="bfloat16",
        kv_tokens=0,
        micro_tokens=micro.micro_batch_tokens,
        chunk_tokens=micro.chunk_tokens,
        reference=options.loss.needs_reference,
        cuda=not check.small,
        fused_layers=setting.fused,
    )
    planned = phase_bytes(memory_by_component(sizes, options, load))["training pass"]
    if not check.small and planned > (1 - SPARE_FRACTION) * check.memory:
        check.report.skipped(name, f"the plan counts {planned / 2**30:.1f} GiB of {check.memory / 2**30:.1f}")
        return
    with check.refusals() as refusals:
        network, chat = model.loaded(
            check, masters=options.masters, frozen=options.lora is not None, fused=setting.fused
        )
        policy = Policy(network, chat, model.config(check, fused=setting.fused), options)
    feeding = policy.forward.feeding
    shown = f"{feeding.packing}{', last layer trimmed' if feeding.trims_last_layer else ''}"
    check.report.judged(f"{name}, feeding", feeding.packing == "shared", shown, "; ".join(refusals))
    measure(check, policy, name, sizes)
    if not check.small:
        note = f"the plan counts {planned / 2**30:.1f} GiB"
        check.report.measured(f"{name}, peak over plan", check.peak() / planned, "", PLAN, note)
    update(check, policy, name)


def measure(check: Check, policy: Policy, name: str, sizes: Architecture) -> None:
    """Seconds of the reference's scores and of the gradient, after a first pass, and the MFU of both."""
    batch = turns(4, 60, 12) if check.small else turns(12, 3000, 400)
    scoring = 0.0
    if policy.reference is not None:
        policy.score_reference(batch[:4])
        scored: list[TrainingTurn] = []
        scoring = check.seconds(lambda: scored.extend(policy.score_reference(batch)))
        batch = scored
        check.report.measured(f"{name}, reference", scoring, "s")
    policy.backward(batch[:4])
    measures: dict[str, float] = {}
    took = check.seconds(lambda: measures.update(policy.backward(batch)))
    tokens = sum(turn.length for turn in batch)
    check.report.measured(f"{name}, gradient", took, "s", note=f"{tokens / took:,.0f} tokens/s")
    if policy.reference is not None:
        # The policy has not changed yet. Both are computed with the same kernels, the adapter's zeros apart.
        check.report.measured(f"{name}, KL before any update", measures["kl"], "nats", KL)
    peak = device_peak(check.device) or matmul_peak(check.device, check.dtype, 0.02 if check.small else 1.0)
    used = training_flops(sizes, batch, cast(GrpoOptions, policy.options)) / (scoring + took) / peak
    check.report.measured(f"{name}, MFU", used, "", None if check.small else MFU, "the goal is 0.4")


def update(check: Check, policy: Policy, name: str) -> None:
    """The seconds of an optimizer step whose moments exist already, if the host has room for them."""
    moments = 8 * sum(parameter.numel() for parameter in policy.trained)
    room = memory_bytes() or 0
    if 2 * moments > room:
        note = f"{moments / 2**30:.0f} GiB of moments, and the host has {room / 2**30:.0f} GiB"
        check.report.skipped(f"{name}, optimizer step", note)
        return
    policy.optimizer.step()
    took = check.seconds(policy.optimizer.step)
    check.report.measured(f"{name}, optimizer step", took, "s", Expected(high=10.0))

"""What a configured run takes in memory: the policy in training, vLLM beside it, and the helpers' own models."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memfactory.config import Resolved
from memfactory.config.training import GrpoOptions, TrainerOptions
from memfactory.engines.options import HfEngineConfig, VllmEngineConfig, same_engine
from memfactory.errors import ConfigError
from memfactory.model.loading import compute_dtype, load_architecture, places
from memfactory.model.options import ModelConfig
from memfactory.plan.footprint import BYTES, Architecture, architecture, memory_by_component, packed_bytes
from memfactory.plan.lengths import Lengths


@dataclass(frozen=True)
class Device:
    """What a run is planned for: a GPU (`cuda`) or this machine's processor, with so many bytes of memory."""

    name: str
    capacity: int
    cuda: bool


def planned_memory(
    resolved: Resolved,
    options: TrainerOptions,
    sizes: Architecture,
    lengths: Lengths | None,
    device: Device,
    problems: list[str],
) -> dict[str, int]:
    """Bytes by component, as `memory_by_component` has them; what keeps helpers from being counted is a problem."""
    config, engine = resolved.config, resolved.config.engine
    own = engine if isinstance(engine, HfEngineConfig) else None
    memory = memory_by_component(
        sizes,
        options,
        dtype=compute_type(config.model, cuda=device.cuda),
        kv_tokens=_kv_tokens(resolved, lengths),
        micro_tokens=max(options.micro_batch_tokens, lengths.longest) if lengths else options.micro_batch_tokens,
        reference=isinstance(options, GrpoOptions) and options.loss.kl_coef > 0,
        continued=places(config.model)[1] is not None,
        cuda=device.cuda,
        prefixes_shared=own is None or own.share_prefixes,
        fused_layers=config.model.fused_layers and sizes.fuses,
        packed_limit=0 if own is None else own.packed_limit,
    )
    if isinstance(engine, VllmEngineConfig) and device.cuda:
        # Asleep it keeps next to nothing.
        share = round(engine.gpu_memory_utilization * device.capacity)
        memory |= {"vLLM, awake" if engine.sleep else "vLLM": share}
    helpers, copies = _helper_bytes(resolved, problems, device)
    memory |= {"helpers' weights": helpers} if helpers else {}
    memory["decoding"] += copies
    return memory


def _helper_bytes(resolved: Resolved, problems: list[str], device: Device) -> tuple[int, int]:
    """The weights of helpers' own models that lie where the policy lies, and their copies while they decode.

    Their caches are not counted.
    """
    loaded: list[HfEngineConfig] = []
    size = copies = 0
    for helper in resolved.config.engines.values():
        if not isinstance(helper, HfEngineConfig) or helper.model is None:
            continue
        if any(same_engine(helper, other) for other in loaded):
            continue
        loaded.append(helper)
        sizes = architecture_of(helper.model, problems)
        there = helper.model.device != "cpu" and (device.cuda or torch.cuda.is_available())
        if sizes is not None and there == device.cuda:
            width = BYTES[compute_type(helper.model, cuda=there)]
            size += width * sizes.parameters
            copies += packed_bytes(sizes, helper.packed_limit) if width == 4 and not there else 0
    return size, copies


def compute_type(model: ModelConfig, *, cuda: bool) -> str:
    """The name of the type that `model` computes in on a GPU, or on a processor."""
    return str(compute_dtype(model, torch.device("cuda" if cuda else "cpu"))).removeprefix("torch.")


def architecture_of(model: ModelConfig, problems: list[str]) -> Architecture | None:
    """The sizes of `model`; None, and a problem, where it cannot be found."""
    try:
        return architecture(load_architecture(model))
    except ConfigError as error:
        problems.append(str(error))
        return None


def _kv_tokens(resolved: Resolved, lengths: Lengths | None) -> int:
    engine = resolved.config.engine
    if not isinstance(engine, HfEngineConfig) or resolved.config.train is None:
        return 0
    if lengths is None:
        return engine.max_batch_tokens if isinstance(resolved.config.train.options, GrpoOptions) else 0
    # Beside what rows need, as much again is kept for others.
    kept = 2 if engine.share_prefixes else 1
    return min(kept * engine.max_batch * lengths.longest, max(engine.max_batch_tokens, lengths.longest))

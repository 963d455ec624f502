"""The memory of a configured run: the policy in training, vLLM beside it, and the frozen models of other engines."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memfactory.config import Resolved
from memfactory.config.training import TrainerOptions
from memfactory.engines.options import HfEngineConfig, VllmEngineConfig, same_engine
from memfactory.errors import ConfigError
from memfactory.model.loading import load_architecture, places
from memfactory.model.options import ModelConfig
from memfactory.plan.footprint import (
    BYTES,
    Architecture,
    Load,
    architecture,
    memory_by_component,
    packed_bytes,
    prefill_bytes,
)
from memfactory.plan.shards import is_sharded, per_process
from memfactory.policy.pass_size import pass_size


@dataclass(frozen=True)
class Device:
    """The device of a plan: a GPU (`cuda`) or this machine's processor, with `capacity` bytes of memory.

    There is one for each of `processes`; those of a processor share its memory.
    """

    name: str
    capacity: int
    cuda: bool
    processes: int = 1


def planned_memory(
    resolved: Resolved,
    options: TrainerOptions,
    sizes: Architecture,
    longest: int,
    device: Device,
    problems: list[str],
) -> dict[str, int]:
    """Bytes by component, as `memory_by_component` has them. `longest` are the tokens of the longest conversation.

    A frozen model whose size is unknown is a problem.
    """
    config, engine = resolved.config, resolved.config.engine
    own = engine if isinstance(engine, HfEngineConfig) else None
    size = pass_size(options, load_architecture(config.model), cpu=not device.cuda)
    load = Load(
        dtype=config.model.compute_type(cuda=device.cuda),
        kv_tokens=_kv_tokens(own, longest) if own is not None and options.plays else 0,
        micro_tokens=max(size.micro_batch_tokens, longest),
        chunk_tokens=size.chunk_tokens,
        reference=options.policy_loss.needs_reference,
        continued=places(config.model)[1] is not None,
        cuda=device.cuda,
        prefixes_shared=own is None or own.share_prefixes,
        fused_layers=config.model.fused_layers and sizes.fuses,
        packed_limit=0 if own is None else own.packed_limit,
        copies_weights=own is not None and own.weight_copy and options.plays,
        prefill_tokens=_prefill_tokens(own, longest) if own is not None and options.plays else 0,
    )
    memory = memory_by_component(sizes, options, load)
    if is_sharded(options, device.processes):
        memory = per_process(memory, sizes, options, load, device.processes)
    if isinstance(engine, VllmEngineConfig) and device.cuda:
        # While asleep vLLM takes almost no memory.
        reserved = round(engine.gpu_memory_utilization * device.capacity)
        memory |= {"vLLM, awake" if engine.sleep else "vLLM": reserved}
    frozen = _frozen_bytes(resolved, problems, longest, device)
    memory |= {name: size for name, size in frozen.items() if size}
    return memory


def _frozen_bytes(resolved: Resolved, problems: list[str], longest: int, device: Device) -> dict[str, int]:
    """The weights of other engines' own models on the policy's device, and all that they hold while they decode.

    They decode beside the policy: one episode's answer is read while others still write.
    """
    loaded: list[HfEngineConfig] = []
    weights = caches = 0
    for engine in resolved.config.engines.values():
        if not isinstance(engine, HfEngineConfig) or engine.model is None:
            continue
        if any(same_engine(engine, other) for other in loaded):
            continue
        loaded.append(engine)
        sizes = architecture_of(engine.model, problems)
        on_gpu = engine.model.device != "cpu" and (device.cuda or torch.cuda.is_available())
        if sizes is not None and on_gpu == device.cuda:
            width = BYTES[engine.model.compute_type(cuda=on_gpu)]
            weights += width * sizes.parameters
            load = Load(
                dtype=engine.model.compute_type(cuda=on_gpu),
                kv_tokens=_kv_tokens(engine, longest),
                prefill_tokens=_prefill_tokens(engine, longest),
                micro_tokens=0,
                reference=False,
                cuda=on_gpu,
            )
            caches += sizes.kv_bytes(load.dtype) * load.kv_tokens + prefill_bytes(sizes, load, converts=False)
            caches += packed_bytes(sizes, engine.packed_limit) if width == 4 and not on_gpu else 0
    return {"frozen models": weights, "caches of frozen models": caches}


def architecture_of(model: ModelConfig, problems: list[str]) -> Architecture | None:
    """The sizes of `model`; None, and a problem, if there is no such model."""
    try:
        return architecture(load_architecture(model))
    except ConfigError as error:
        problems.append(str(error))
        return None


def _prefill_tokens(engine: HfEngineConfig, longest: int) -> int:
    """Prompt tokens in one pass; `longest` 0: unknown. A longer prompt goes alone."""
    return max(min(engine.prefill_tokens, engine.max_batch * longest), longest) if longest else engine.prefill_tokens


def _kv_tokens(engine: HfEngineConfig, longest: int) -> int:
    """Tokens in the key-value cache at one time; `longest` 0: unknown."""
    if longest == 0:
        return engine.max_batch_tokens
    # As many tokens as the rows need are cached beside them.
    cached = 2 if engine.share_prefixes else 1
    return min(cached * engine.max_batch * longest, max(engine.max_batch_tokens, longest))

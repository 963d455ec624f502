"""Whether vLLM can start beside the policy, and how much it can decode at one time: arithmetic, no vLLM.

vLLM reserves a fraction of the GPU. Weights, the largest pass and CUDA graphs take their part of it, and the rest is
key-value cache, which must hold at least one conversation of the longest length. The sizes of its passes follow the
defaults of the versions in engines/vllm/checks.py. None of this was measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from memfactory.engines.options import VllmEngineConfig
from memfactory.plan.footprint import BYTES, PHASES, Architecture, peak_bytes
from memfactory.plan.memory import Device

GIB = 2**30
# Bytes of a token's logits while vLLM tries its sampler: two float32 copies, and the indices of a sort.
SAMPLER_BYTES = 16
# CUDA graphs, and the libraries' own memory.
GRAPH_BYTES, LIBRARY_BYTES = GIB // 2, GIB // 2
# At and above this capacity vLLM takes larger passes by default.
LARGE_GPU = 70 * GIB
FEW = 4
"""The number of longest conversations at one time below which a plan warns."""


@dataclass(frozen=True)
class VllmMemory:
    """Bytes of a vLLM on a GPU of `capacity`: its `reserved` part, and the weights and passes therein.

    `token` is the cache of one token.
    """

    capacity: int
    reserved: int
    weights: int
    passes: int
    token: int

    @property
    def cache(self) -> int:
        """The bytes left for the key-value cache; 0 if nothing is left."""
        return max(0, self.reserved - self.weights - self.passes)

    @property
    def tokens(self) -> int:
        """The tokens that the cache holds."""
        return self.cache // self.token

    def fraction_for(self, tokens: int) -> float:
        """The fraction of the GPU that vLLM must reserve to cache `tokens`."""
        return (self.weights + self.passes + tokens * self.token) / self.capacity


def vllm_memory(
    engine: VllmEngineConfig, sizes: Architecture, dtype: str, capacity: int, adapter_parameters: int = 0
) -> VllmMemory:
    """The memory of `engine` for a model of these `sizes` in `dtype`, with room for an adapter."""
    width, large = BYTES[dtype], capacity >= LARGE_GPU
    rows = engine.max_num_seqs or (1024 if large else 256)
    batch = max(rows, engine.max_num_batched_tokens or (16384 if large else 8192))
    layer = batch * width * (3 * sizes.intermediate + 4 * sizes.hidden)
    sampler = rows * sizes.vocabulary * SAMPLER_BYTES
    return VllmMemory(
        capacity=capacity,
        reserved=round(engine.gpu_memory_utilization * capacity),
        weights=width * (sizes.parameters + adapter_parameters),
        passes=layer + sampler + LIBRARY_BYTES + (0 if engine.enforce_eager else GRAPH_BYTES),
        token=sizes.kv_bytes(dtype),
    )


@dataclass(frozen=True)
class PlannedModel:
    """The model beside which vLLM runs on `device`: its `sizes`, and the type it computes in.

    `longest` are the tokens of the longest conversation (0: unknown), `adapter_parameters` those of an adapter.
    """

    sizes: Architecture
    dtype: str
    device: Device
    adapter_parameters: int = 0
    longest: int = 0

    def vllm(self, engine: VllmEngineConfig) -> VllmMemory:
        """The memory of `engine` on the device."""
        return vllm_memory(engine, self.sizes, self.dtype, self.device.capacity, self.adapter_parameters)


def with_vllm(engine: VllmEngineConfig, memory: dict[str, int], planned: PlannedModel) -> list[str]:
    """A warning if a rollout with `engine` in place of the engine `hf`, whose plan is `memory`, exceeds the device."""
    alone = {name: size for name, size in memory.items() if name not in PHASES["rollout"]}
    reserved = planned.vllm(engine).reserved
    peak = peak_bytes({**alone, "vLLM, awake" if engine.sleep else "vLLM": reserved})
    if peak <= planned.device.capacity:
        return []
    fraction = math.floor(100 * (planned.device.capacity - peak + reserved) / planned.device.capacity) / 100
    remedy = f"lower engine.gpu_memory_utilization to {fraction:g}" if fraction > 0 else "write engine.kind: hf"
    return [
        f"with vLLM about {peak / GIB:.1f} GiB are needed, but {planned.device.name} has "
        f"{planned.device.capacity / GIB:.1f} GiB; {remedy}"
    ]


def vllm_row(memory: VllmMemory, longest: int) -> tuple[str, str]:
    """The row of a plan about the cache; `longest` 0: unknown."""
    text = f"{memory.cache / GIB:.1f} GiB of cache, {memory.tokens:,} tokens"
    return "vLLM", f"{text}, {memory.tokens / longest:.1f} of the longest conversations" if longest else text


def check_vllm(
    engine: VllmEngineConfig, memory: VllmMemory, longest: int, problems: list[str], warnings: list[str]
) -> None:
    """A problem if vLLM cannot start or cannot hold the longest conversation; `longest` 0: unknown.

    vLLM demands the cache of one conversation of `engine.max_model_len` tokens; null leaves that length to vLLM.
    """
    limit = engine.max_model_len
    if limit is not None and longest > limit:
        problems.append(
            f"a conversation of {longest:,} tokens (prompt and longest reply) does not fit engine.max_model_len "
            f"({limit:,}); raise it, or write null for as many as the cache holds"
        )
        return
    demanded = limit or max(longest, 1)
    if demanded <= memory.tokens:
        if longest and memory.tokens < FEW * longest:
            warnings.append(
                f"vLLM's cache holds {memory.tokens / longest:.1f} of the longest conversations ({longest:,} tokens), "
                "so few decode at one time; raise engine.gpu_memory_utilization"
            )
        return
    remedies = []
    if limit is not None and 0 < longest < limit:
        remedies.append(f"write engine.max_model_len: null (the longest conversation has {longest:,} tokens)")
    fraction = math.ceil(100 * memory.fraction_for(demanded)) / 100
    if fraction < 1:
        remedies.append(f"raise engine.gpu_memory_utilization to {fraction:g}")
    remedies.append("write engine.kind: hf" if remedies else "use another model, or write engine.kind: hf")
    problems.append(
        f"vLLM does not start: of the {memory.reserved / GIB:.1f} GiB that it reserves "
        f"(engine.gpu_memory_utilization: {engine.gpu_memory_utilization:g}) weights take "
        f"{memory.weights / GIB:.1f} and passes about {memory.passes / GIB:.1f}, and the cache of one conversation of "
        f"{demanded:,} tokens needs {demanded * memory.token / GIB:.1f}; {', or '.join(remedies)}"
    )

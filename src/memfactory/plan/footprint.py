"""The memory of training a model, by component: arithmetic on its config, no weights loaded.

On the CPU the sum is 1 to 1.15 times the peak that torch allocates (`python -m benchmarks.memory`). A
GPU's driver and fragmentation come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from memfactory.config.training import TrainerOptions
from memfactory.model.fused_layers import fusible
from memfactory.policy.pass_size import attention_widths, fused_layer_bytes
from memfactory.policy.sliced_adamw import SLICE

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of both moments for a parameter; low-bit ones come with a float32 scale for each block of 256 or 128.
MOMENTS = {
    "adamw": 8.0,
    "adamw_offload": 8.0,
    "adamw_8bit": 2 * (1 + 4 / 256),
    "adamw_8bit_torchao": 2 * (1 + 4 / 256),
    "adamw_4bit_torchao": 2 * (1 / 2 + 4 / 128),
}


@dataclass(frozen=True)
class Architecture:
    """The sizes that memory depends on. Parameters are counts; `kv_bytes` is the key-value cache of one token.

    `fuses`: whether its norms and feed-forward blocks can be fused.
    """

    parameters: int
    head_parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    attention_width: int
    kv_width: int
    max_positions: int
    tied: bool = True
    fuses: bool = True

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of key-value cache for one token over all layers."""
        return 2 * self.layers * self.kv_width * BYTES[dtype]

    def forward_flops(self, tokens: float, logits: float, attended: float) -> float:
        """Floating-point operations of a forward pass: `tokens` in, `logits` positions scored, and the sum over the
        tokens of how many positions each attends to (causal: half the square of the length)."""
        body = self.parameters - self.head_parameters
        return (
            2 * body * tokens
            + 2 * self.vocabulary * self.hidden * logits
            + 4 * self.layers * self.attention_width * attended
        )


def architecture(config: Any) -> Architecture:
    """The sizes of a decoder from its config; parameters are counted on a model without storage."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    attention_width, kv_width = attention_widths(config)
    return Architecture(
        parameters=sum(p.numel() for p in model.parameters()),
        head_parameters=model.get_input_embeddings().weight.numel(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        attention_width=attention_width,
        kv_width=kv_width,
        max_positions=config.max_position_embeddings,
        tied=bool(config.tie_word_embeddings),
        fuses=fusible(model),
    )


def adapter_parameters(sizes: Architecture, rank: int) -> int:
    """Parameters of LoRA adapters of `rank` on every linear layer but the head."""
    h, a, kv, m = sizes.hidden, sizes.attention_width, sizes.kv_width, sizes.intermediate
    widths = [(h, a), (h, kv), (h, kv), (a, h), (h, m), (h, m), (m, h)]
    return sizes.layers * rank * sum(i + o for i, o in widths)


@dataclass(frozen=True)
class Precision:
    """Bytes of a number in computing and in the trained weights; and whether layers are `fused`."""

    compute: int
    masters: int
    lora: bool
    fused: bool = True

    @property
    def stream(self) -> int:
        """Bytes of a number in the states between layers: embeddings keep the weights' type, and sums the wider one."""
        return self.compute if self.lora else self.masters

    def layer_bytes(self, sizes: Architecture, *, recomputed: bool = False) -> int:
        """Bytes that the backward pass of one decoder layer needs of one token.

        Norms keep their input (in float32) and their normed output, linear maps their input (a copy for each where
        autocast or an adapter converts it), rotary attention its three operands and twice its output, the gated unit
        its four intermediate values. Frozen weights do not need the input. Fused norms keep their input as it is and
        nothing else, the fused gated unit three values; two where its product is `recomputed`.
        """
        h, a, kv, m = sizes.hidden, sizes.attention_width, sizes.kv_width, sizes.intermediate
        if self.fused:
            values = (2 if recomputed else 3) * m
            if self.compute == 4:
                return fused_layer_bytes(h, a, kv, values)
            unit = self.compute * values
            if self.lora:
                return 14 * h + 8 * a + 6 * kv + unit
            return (18 if self.masters == 4 else 8) * h + 8 * a + 6 * kv + unit
        if self.compute == 4:
            return 4 * (4 * h + 4 * a + 3 * kv + 4 * m) if self.lora else 4 * (6 * h + 5 * a + 4 * kv + 4 * m)
        if self.lora:
            return 18 * h + 10 * a + 8 * kv + 8 * m
        return (26 if self.masters == 4 else 16) * h + 12 * a + 10 * kv + 8 * m

    def working_bytes(self, sizes: Architecture, *, recomputed: bool = False) -> int:
        """Bytes that the backward pass of the gated unit holds of one token, without those freed already.

        An adapter in float32 converts its input. A `recomputed` product is there once more.
        """
        converted = 4 * sizes.intermediate if self.lora and self.compute != 4 else 0
        return self.compute * (3 if recomputed else 2) * sizes.intermediate + 4 * sizes.hidden + converted


@dataclass(frozen=True)
class Load:
    """The tokens that a run holds at one time, and how it computes.

    `kv_tokens` are cached during the rollout, `micro_tokens` go through one forward and backward pass, `chunk_tokens`
    have logits at one time. `cuda`: the run is on a GPU, which `optimizer.kind: auto` and offloading depend on.
    `continued`: the model has an adapter already. Without `prefixes_shared` the engine masks its attention and repeats
    keys and values of one layer for it. A CPU copies up to `packed_limit` bytes of float32 weights to decode from; a
    GPU, with `copies_weights`, all weights that are float32 or below an adapter. `prefill_tokens` of prompts go through
    one pass.
    """

    dtype: str
    kv_tokens: int
    micro_tokens: int
    reference: bool
    cuda: bool
    continued: bool = False
    prefixes_shared: bool = True
    fused_layers: bool = True
    packed_limit: int = 0
    copies_weights: bool = False
    prefill_tokens: int = 0
    chunk_tokens: int = 2048


def memory_by_component(sizes: Architecture, options: TrainerOptions, load: Load) -> dict[str, int]:
    """Bytes by component, each at its own peak; `phase_bytes` says which of them are present together."""
    cuda, micro_tokens, kv_tokens = load.cuda, load.micro_tokens, load.kv_tokens
    n, width = sizes.parameters, BYTES[load.dtype]
    lora = options.lora
    trained = n if lora is None else adapter_parameters(sizes, lora.rank)
    precision = Precision(width, 4 if lora is not None else BYTES[options.masters], lora is not None, load.fused_layers)
    mixed = lora is None and precision.masters != width
    head = sizes.vocabulary * sizes.hidden
    matrix = sizes.hidden * max(sizes.intermediate, sizes.attention_width)
    # An adapter in another type keeps a copy of the product, so that computing it again would save nothing.
    recomputed = load.fused_layers and not options.gradient_checkpointing and (lora is None or width == 4)
    layer = micro_tokens * precision.layer_bytes(sizes, recomputed=recomputed)
    working = micro_tokens * precision.working_bytes(sizes, recomputed=recomputed)
    if lora is None:
        # The gradient of a weight, before it is added to the sum.
        working += matrix * (4 + (width if width != 4 else 0))
    if options.gradient_checkpointing:
        stored, working = micro_tokens * precision.stream * sizes.hidden * sizes.layers, working + layer
    else:
        stored = layer * sizes.layers
    copies = 0
    if mixed:
        # Autograd keeps each weight as it was computed with; recomputing layers, one layer's at a time.
        body = n - head * (1 if sizes.tied else 2)
        copies = width * (body // sizes.layers if options.gradient_checkpointing else body)
    chunk = min(load.chunk_tokens, micro_tokens)
    repeats = not load.prefixes_shared and sizes.kv_width != sizes.attention_width
    repeated = 2 * width * sizes.attention_width if repeats else 0
    copied = 0
    if cuda and load.copies_weights and width != 4:
        # Embeddings are below no adapter.
        copied = width * (n if mixed else n - head * (1 if sizes.tied else 2) if lora is not None else 0)
    elif not cuda and width == precision.masters == 4:
        copied = packed_bytes(sizes, load.packed_limit)
    return {
        "weights": precision.masters * n if lora is None else width * n + 4 * trained,
        "optimizer": 0 if offloads(options, cuda=cuda) else moment_bytes(trained, options, cuda=cuda),
        "reference": reference_bytes(sizes, options, width, trained, load.continued) if load.reference else 0,
        "gradients": 4 * trained,
        "stored activations": stored,
        "weights as computed with": copies,
        "a layer's backward pass": working,
        "logits": chunk * logit_bytes(sizes, options, width) + (width * head if mixed else 0),
        "the head's gradient": 4 * head if lora is None else 0,
        "optimizer's workspace": workspace_bytes(sizes, options, cuda=cuda),
        "key-value cache": sizes.kv_bytes(load.dtype) * kv_tokens,
        "decoding": repeated * kv_tokens + copied,
        "prefill": prefill_bytes(sizes, load, converts=mixed and not load.copies_weights),
    }


def prefill_bytes(sizes: Architecture, load: Load, *, converts: bool) -> int:
    """Bytes of a pass over prompts: their keys and values before they are cut into prefixes, and a layer's states.

    Without a copy of the weights in the compute type normed keys are float32, and both types exist while it `converts`.
    """
    keys = sizes.kv_bytes(load.dtype) * (2 if converts else 1)
    layer = BYTES[load.dtype] * (2 * sizes.intermediate + 2 * sizes.attention_width + 3 * sizes.hidden)
    return (keys + layer) * load.prefill_tokens


def packed_bytes(sizes: Architecture, limit: int) -> int:
    """The float32 weights that a CPU copies to decode from, within `limit` bytes: all but an untied embedding."""
    return min(limit, 4 * (sizes.parameters - (0 if sizes.tied else sizes.vocabulary * sizes.hidden)))


def offloads(options: TrainerOptions, *, cuda: bool) -> bool:
    """Whether the moments are in host memory, apart from the model."""
    return cuda and options.optimizer.kind == "adamw_offload"


def moment_bytes(trained: int, options: TrainerOptions, *, cuda: bool) -> int:
    """Bytes of the optimizer's moments, on the device or in host memory."""
    return round(MOMENTS[options.optimizer.kind_on(cuda=cuda, stochastic=options.stochastic)] * trained)


def reference_bytes(
    sizes: Architecture, options: TrainerOptions, width: int, trained: int, continued: bool = False
) -> int:
    """Bytes of the reference: a frozen copy in the compute type, with embeddings (and tied heads) in the weights' type.

    A moving average is all float32. Under adapters only they are copied, if the reference moves or training continues
    an adapter (`continued`).
    """
    loss = options.policy_loss
    if options.lora is not None:
        return 4 * trained if loss.moving_reference or continued else 0
    if loss.moving_reference and loss.reference_mixup < 1:
        return 4 * sizes.parameters
    embeddings = sizes.vocabulary * sizes.hidden
    return width * (sizes.parameters - embeddings) + BYTES[options.masters] * embeddings


def logit_bytes(sizes: Architecture, options: TrainerOptions, width: int) -> int:
    """Bytes of one token's logits, exponentials and gradients; a gradient of the entropy keeps two more arrays."""
    bonus = options.policy_loss.entropy_coef > 0
    return sizes.vocabulary * (12 + (8 if bonus else 0) + (0 if width == 4 else width))


def workspace_bytes(sizes: Architecture, options: TrainerOptions, *, cuda: bool) -> int:
    """Temporary bytes of an update: two copies of the largest parameter, a few slices, or (fused) nothing."""
    largest = sizes.vocabulary * sizes.hidden if options.lora is None else options.lora.rank * sizes.intermediate
    kind = options.optimizer.kind_on(cuda=cuda, stochastic=options.stochastic)
    if kind == "adamw_offload" or (kind == "adamw" and options.stochastic):
        return 6 * 4 * min(SLICE, largest)
    return 0 if cuda and kind in ("adamw", "adamw_8bit") else 2 * 4 * largest


PHASES = {
    "rollout": (
        "key-value cache",
        "decoding",
        "prefill",
        "caches of frozen models",
        "vLLM, awake",
        "whole copy for sampling",
    ),
    "training pass": (
        "gradients",
        "stored activations",
        "weights as computed with",
        "gathered layers",
        "the head's gradient",
    ),
    "optimizer step": ("gradients", "optimizer's workspace"),
}
# Only the larger of these is present: logits are freed when the first layer's backward pass begins.
ALTERNATIVES = ("a layer's backward pass", "logits")


def phase_components(components: dict[str, int]) -> dict[str, dict[str, int]]:
    """The components present at the peak of each phase. A component of no phase is present all the time."""
    passing = {name for names in PHASES.values() for name in names}.union(ALTERNATIVES)
    present = {phase: set(components) - passing.difference(names) for phase, names in PHASES.items()}
    present["training pass"].add(max(ALTERNATIVES, key=lambda name: components.get(name, 0)))
    return {phase: {name: components[name] for name in components if name in there} for phase, there in present.items()}


def phase_bytes(components: dict[str, int]) -> dict[str, int]:
    """Bytes at the peak of each phase of a step."""
    return {phase: sum(there.values()) for phase, there in phase_components(components).items()}


def peak_bytes(components: dict[str, int]) -> int:
    """The largest of `phase_bytes`."""
    return max(phase_bytes(components).values())

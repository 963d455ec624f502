"""What training a model takes in memory, by component: arithmetic on its config, no weights loaded.

Activations are an estimate (about 20 % either way); the rest is exact up to the allocator's rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from memfactory.config.training import TrainerOptions

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Architecture:
    """The sizes that memory depends on. Parameters are counts; `kv_bytes` is the key-value cache of one token."""

    parameters: int
    head_parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    attention_width: int
    kv_width: int
    max_positions: int

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
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Architecture(
        parameters=sum(p.numel() for p in model.parameters()),
        head_parameters=model.get_input_embeddings().weight.numel(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        attention_width=heads * head_dim,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        max_positions=config.max_position_embeddings,
    )


def adapter_parameters(sizes: Architecture, rank: int) -> int:
    """Parameters of LoRA adapters of `rank` on every linear layer but the head."""
    h, a, kv, m = sizes.hidden, sizes.attention_width, sizes.kv_width, sizes.intermediate
    widths = [(h, a), (h, kv), (h, kv), (a, h), (h, m), (h, m), (m, h)]
    return sizes.layers * rank * sum(i + o for i, o in widths)


def memory_by_component(
    sizes: Architecture,
    options: TrainerOptions,
    *,
    dtype: str,
    kv_tokens: int,
    micro_tokens: int,
    reference: bool,
    cuda: bool,
) -> dict[str, int]:
    """Bytes by component at the peak of a training step.

    `cuda` says whether the run is on a GPU, which `optimizer.kind: auto` depends on. `kv_tokens` are cached at one
    time during the rollout, `micro_tokens` go through one forward and backward pass.
    The rollout's cache and the training pass's activations are never alive together, so the larger one counts
    against the other in `total`.
    """
    n, width, mixed = sizes.parameters, BYTES[dtype], dtype != "float32"
    lora = options.lora
    trained = n if lora is None else adapter_parameters(sizes, lora.rank)
    state = 8 if options.optimizer.kind == "adamw" or (options.optimizer.kind == "auto" and not cuda) else 2
    if lora is None:
        weights = 4 * n + (width * n if mixed else 0)
    else:
        weights = width * n + 4 * trained
    per_layer = width * (8 * sizes.hidden + 4 * sizes.attention_width + 4 * sizes.kv_width + 4 * sizes.intermediate)
    stored = (
        width * sizes.hidden * sizes.layers + per_layer if options.gradient_checkpointing else per_layer * sizes.layers
    )
    chunk = min(options.logprob_chunk_tokens, micro_tokens)
    return {
        "weights": weights,
        "gradients": 4 * trained,
        "optimizer": state * trained,
        "reference": width * n if reference and lora is None else 0,
        "key-value cache": sizes.kv_bytes(dtype) * kv_tokens,
        "activations": stored * micro_tokens,
        "logits": 3 * 4 * chunk * sizes.vocabulary,
    }


def peak_bytes(components: dict[str, int]) -> int:
    """The larger of the rollout's and the training pass's peak; what else there is, is there all the time."""
    rollout, training = components["key-value cache"], components["activations"] + components["logits"]
    return sum(components.values()) - rollout - training + max(rollout, training)

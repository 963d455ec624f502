"""The size of a training pass where the config leaves it open: tokens of a micro-batch, and of a chunk of logits.

On a GPU they are fixed numbers. On a CPU, where a pass of fewer tokens is as fast, bytes bound both: a model of more
than a few million parameters takes 0.8 GiB of activations, not ten. They depend on the model, not on the memory that is
free at the moment, so that a run can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from memfactory.config.training import TrainerOptions

MICRO_BATCH_TOKENS, CHUNK_TOKENS = 16384, 2048
ACTIVATION_BYTES, LOGIT_BYTES = 8 * 2**30 // 10, 2**25
# A shorter pass would spend much of its time on reading weights.
LEAST_TOKENS = 128


@dataclass(frozen=True)
class PassSize:
    """Tokens of one forward and backward pass, and reply tokens whose logits are in memory at one time.

    `bounded`: bytes bound the tokens, since the model is large for a CPU.
    """

    micro_batch_tokens: int
    chunk_tokens: int
    bounded: bool = False


def pass_size(options: TrainerOptions, config: PretrainedConfig, *, cpu: bool) -> PassSize:
    """The sizes that `options` name and, where they are None, those that suit a model of this `config`."""
    tokens, chunk = options.micro_batch_tokens, options.logprob_chunk_tokens
    architecture = config.get_text_config()
    if tokens is None:
        each = _activation_bytes(architecture, checkpointing=options.gradient_checkpointing)
        tokens = _bounded(MICRO_BATCH_TOKENS, ACTIVATION_BYTES // each) if cpu else MICRO_BATCH_TOKENS
    if chunk is None:
        chunk = _bounded(CHUNK_TOKENS, LOGIT_BYTES // (4 * architecture.vocab_size)) if cpu else CHUNK_TOKENS
    bounded = cpu and options.micro_batch_tokens is None and tokens < MICRO_BATCH_TOKENS
    return PassSize(tokens, chunk, bounded)


def _bounded(usual: int, most: int) -> int:
    """`usual` or, if that is less, `most` in whole multiples of LEAST_TOKENS, of which it is at least one."""
    return min(usual, max(most // LEAST_TOKENS, 1) * LEAST_TOKENS)


def attention_widths(config: PretrainedConfig) -> tuple[int, int]:
    """The width of all query heads of a decoder layer and that of all key heads."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * head_dim, (getattr(config, "num_key_value_heads", None) or heads) * head_dim


def fused_layer_bytes(hidden: int, attention: int, keys: int, unit: int) -> int:
    """Bytes of float32 that the backward pass of a decoder layer with fused norms needs of one token.

    `attention` and `keys` are the widths of all query and key heads, `unit` that of all values kept of the gated unit.
    """
    return 4 * (4 * hidden + 4 * attention + 3 * keys + unit)


def _activation_bytes(config: PretrainedConfig, *, checkpointing: bool) -> int:
    """About how many bytes a token leaves for the backward pass in float32, with fused layers."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = fused_layer_bytes(hidden, *attention_widths(config), 2 * inner)
    return int(4 * hidden * layers + layer if checkpointing else layer * layers)

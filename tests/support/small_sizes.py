"""The sizes of the small random models of the tests."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase


def small_sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The arguments of a decoder's config: two layers of 64, with an embedding for each token of `tokenizer`."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

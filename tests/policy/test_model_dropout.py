"""A model's own dropout is off in training unless asked for; adapters keep theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from memfactory.config.optimizer import LoraOptions
from memfactory.policy.dropout import silence_dropout
from small_policy import gradients, largest_difference, small_policy, some_turns


def gpt2(folder: Path, tokenizer: Path, dropout: float) -> Path:
    """A random GPT-2 with this much dropout everywhere, equal weights each time."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(words), n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def gradient(path: Path, **options: object) -> list[torch.Tensor]:
    policy = small_policy(path, packing="padded", **options)
    torch.manual_seed(1)
    policy.backward(some_turns())
    return gradients(policy)


def test_the_gradient_is_that_of_a_model_without_dropout(small_model_path: Path, tmp_path: Path) -> None:
    wet = gpt2(tmp_path / "wet", small_model_path, 0.1)
    dry = gpt2(tmp_path / "dry", small_model_path, 0.0)
    expected = gradient(dry)
    assert largest_difference(expected, gradient(wet)) == 0
    assert largest_difference(expected, gradient(wet, model_dropout=True)) > 0.05


def test_adapters_keep_their_own_dropout(small_model_path: Path, tmp_path: Path) -> None:
    wet = gpt2(tmp_path / "wet", small_model_path, 0.1)
    lora = LoraOptions(rank=4, dropout=0.5, target_modules=("c_attn",))
    policy = small_policy(wet, lora=lora)
    kept = {name: one.p for name, one in policy.network.named_modules() if isinstance(one, nn.Dropout) and one.p > 0}
    assert kept and all("lora_dropout" in name and p == 0.5 for name, p in kept.items())


def test_numbers_that_layers_hand_to_functions_count_too() -> None:
    layer = nn.Module()
    layer.attention_dropout, layer.dropout_rate_name, layer.layerdrop = 0.1, "p", 0.2
    layer.inner = nn.Dropout(0.3)
    assert silence_dropout(layer) == 3
    assert (layer.attention_dropout, layer.layerdrop, layer.inner.p) == (0, 0, 0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointed_layers_compute_the_same_gradient(
    small_model_path: Path, tmp_path: Path, checkpointing: bool
) -> None:
    wet = gpt2(tmp_path / "wet", small_model_path, 0.1)
    assert largest_difference(gradient(wet), gradient(wet, gradient_checkpointing=checkpointing)) < 1e-5

"""The trials of a model before it shares prefixes: its own rounding is no reason against it, an error is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfactory.engines.hf.forward import Forward
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.model.trial import ordinary_ids, relative_distance, rounding
from memfactory.policy.forward import autocast
from memfactory.policy.self_test import usable_packing
from real_models import real_model

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}


class Restless(Qwen3ForCausalLM):
    """On special ids, the first ten, its logits are far from themselves."""

    def forward(self, input_ids, **options):
        result = super().forward(input_ids, **options)
        if (input_ids < 10).any():
            result.logits = result.logits + 5 * torch.randn_like(result.logits)
        return result


class Leaking(Qwen3ForCausalLM):
    """Under tree attention its logits are 8 % too large."""

    def forward(self, *args, attention_plan=None, **options):
        result = super().forward(*args, attention_plan=attention_plan, **options)
        if attention_plan is not None:
            result.logits = result.logits * 1.08
        return result


def bfloat16_model(kind=Qwen3ForCausalLM, layers: int = 2, spread: float = 0.1):
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, num_hidden_layers=layers, initializer_range=spread)
    model = kind(config).to(torch.bfloat16).eval()
    model.set_attn_implementation("sdpa")
    return model


def shares_while_sampling(model, vocabulary: int = 300) -> bool:
    forward = Forward(model, vocabulary, 0, torch.bfloat16, 0)
    with forward.computing():
        shares = forward.use_tree_attention()
    forward.sleep()
    return shares


def test_ordinary_ids_are_of_the_middle_half():
    # From 100 to 299 in steps of 40.
    assert ordinary_ids(400, 5) == [100, 140, 180, 220, 260]
    for vocabulary in (1, 2, 7, 300, 151_936):
        ids = ordinary_ids(vocabulary, 12)
        assert len(ids) == 12 and all(0 <= number < vocabulary for number in ids)
        assert vocabulary < 300 or (min(ids) >= vocabulary // 4 and max(ids) < vocabulary - vocabulary // 4)


def test_rounding_of_a_deep_model_is_no_reason_against_sharing():
    deep = bfloat16_model(layers=24, spread=0.5)
    ids = torch.tensor([ordinary_ids(300, 12)])
    with torch.no_grad():
        bound = rounding(deep, torch.bfloat16, lambda: deep(ids).logits[0, -1])
        # With 24 layers that amplify it, rounding alone is beyond the 5 % that one attention call may be wrong.
        whole = deep(ids).logits[0, -1]
        assert relative_distance(whole, deep.float()(ids).logits[0, -1]) > 0.05 and bound > 0.1
    deep.to(torch.bfloat16)
    assert shares_while_sampling(deep)
    with autocast(deep.device, torch.bfloat16):
        assert usable_packing(deep, "shared", torch.bfloat16) == "shared"


def test_special_ids_are_not_tried():
    assert shares_while_sampling(bfloat16_model(Restless))


def test_an_error_beyond_rounding_is_found_in_half_precision_too():
    assert not shares_while_sampling(bfloat16_model(Leaking))


@pytest.mark.parametrize("masters", ["bfloat16", "float32"])
def test_a_real_model_shares_prefixes_in_bfloat16(masters: str):
    config = ModelConfig(path=str(real_model("smollm2")), dtype="bfloat16", device="cpu")
    model = load_model(config, training=True, masters=masters)
    assert shares_while_sampling(model, load_chat(config).vocab_size)
    with autocast(model.device, torch.bfloat16):
        assert usable_packing(model, "shared", torch.bfloat16) == "shared"


def test_a_real_model_with_adapters_shares_prefixes_while_it_samples(tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    config = ModelConfig(path=str(real_model("smollm2")), dtype="bfloat16", device="cpu")
    adapted = get_peft_model(load_model(config, training=False), LoraConfig(r=4, target_modules="all-linear"))
    assert shares_while_sampling(adapted.get_base_model(), load_chat(config).vocab_size)

"""Adapters on a real pretrained model whose head and embedding are one weight: what is trained is what is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.weights import save_weights
from real_models import real_model

# "The capital of France is" in SmolLM2's tokens.
IDS = torch.tensor([[504, 3575, 282, 4649, 314]])


@pytest.mark.slow
@pytest.mark.parametrize("modules", [["q_proj", "embed_tokens"], ["q_proj", "lm_head"]], ids=["embedding", "head"])
def test_an_adapter_on_a_tied_weight_is_loaded_as_trained(modules: list[str], tmp_path: Path) -> None:
    config = ModelConfig(path=str(real_model("smollm2")), dtype="float32", fused_layers=False)
    base = load_model(config, training=False)
    assert base.config.tie_word_embeddings

    @torch.no_grad()
    def logprobs(model: torch.nn.Module) -> torch.Tensor:
        # In float64: in float32 the order of the sums alone makes a difference of 4e-5.
        return model.double()(input_ids=IDS).logits[0].log_softmax(-1)

    before = logprobs(base)
    base.float()
    torch.manual_seed(0)
    network = get_peft_model(base, LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.005 * torch.randn_like(parameter))
    save_weights(network, tmp_path / "adapter", torch.float32)
    assert any("lora" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    trained = logprobs(network)
    assert (trained - before).abs().max() > 0.1
    del network, base
    loaded = load_model(
        ModelConfig(path=str(tmp_path / "adapter"), dtype="float32", fused_layers=False), training=False
    )
    # The merged weights are rounded to float32 once: 2e-5 for log-probabilities down to -30 behind thirty layers.
    assert (logprobs(loaded) - trained).abs().max() < 3e-5

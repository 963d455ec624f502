"""Models wide enough for oneDNN's products, with a large vocabulary: exact log-probabilities, gradients, repeatable."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory import turns
from memfactory.config.grpo import GrpoOptions
from memfactory.model.fused_layers import fuse_layers
from memfactory.model.linear import FastLinear, has_fast_products
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.policy.logprobs import Distribution, chunked_logprobs
from memfactory.policy.policy import Policy

VOCABULARY, WIDTH, TOKENS = 49152, 192, 70


@pytest.mark.parametrize("cut", [None, 49100])
def test_chunks_of_a_large_vocabulary_match_float64(cut: int | None):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw) / 8
    hidden = torch.randn(TOKENS, WIDTH, generator=draw)
    targets = torch.randint(0, 49000, (TOKENS,), generator=draw)
    slopes = torch.rand(TOKENS, generator=draw) + 0.5

    exact_hidden, exact_weight = hidden.double().requires_grad_(True), weight.double().requires_grad_(True)
    every = ((exact_hidden @ exact_weight.t())[:, :cut] / 0.7).log_softmax(-1)
    expected = every.gather(-1, targets[:, None]).squeeze(-1)
    expected_entropy = -(every.exp() * every).sum(-1).detach()
    into = torch.autograd.grad(expected, [exact_hidden, exact_weight], slopes.double())

    head = FastLinear(WIDTH, VOCABULARY, bias=False)
    head.weight = nn.Parameter(weight)
    states = hidden.clone().requires_grad_(True)
    # 70 tokens in chunks of 48: one of a multiple of 16 rows, and one that is filled up.
    logprobs, entropies = chunked_logprobs(states, targets, head, Distribution(cut, 0.7, 48, with_entropy=True))
    gradients = torch.autograd.grad(logprobs, [states, head.weight], slopes)
    # Logits are sums of 192 products, of size 2: off by some 192^0.5 x 6e-8 x 2 = 2e-6, times 1 / 0.7.
    assert (logprobs.double() - expected).abs().max() < 2e-5
    assert entropies is not None and (entropies.double() - expected_entropy).abs().max() < 2e-5
    for found, exact in zip(gradients, into, strict=True):
        assert (found.double() - exact).norm() <= 5e-6 * exact.norm()


def wide_policy(**options: object) -> Policy:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 192, "intermediate_size": 256, "num_attention_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=2405, tie_word_embeddings=True))
    fuse_layers(model)
    config = ModelConfig(device="cpu")
    return Policy(model, load_chat(config), config, GrpoOptions.model_validate(options))


@pytest.mark.skipif(not has_fast_products(), reason="needs oneDNN and AVX-512")
def test_wide_layers_are_those_of_onednn():
    layers = [module for module in wide_policy().model.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 15 and all(type(layer) is FastLinear for layer in layers)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_equal_updates_give_equal_bits(lora: dict[str, int] | None):
    def trained() -> list[torch.Tensor]:
        policy = wide_policy(lora=lora)
        for _ in range(2):
            policy.update(turns(4, 30, 17))
        return [parameter.detach().clone() for parameter in policy.trained]

    assert all(torch.equal(one, other) for one, other in zip(trained(), trained(), strict=True))


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_the_gradient_is_that_of_plain_layers(lora: dict[str, int] | None):
    fast, plain = wide_policy(lora=lora), wide_policy(lora=lora)
    for module in plain.model.modules():
        if type(module) is FastLinear:
            module.__class__ = nn.Linear
    for policy in (fast, plain):
        policy.backward(turns(4, 30, 17))
    for one, other in zip(fast.trained, plain.trained, strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-5 * (other.grad.norm() + 1e-6)

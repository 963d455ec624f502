"""Decoding from a copy of the weights in oneDNN's layout against decoding from the weights themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from memfactory.engines.base import sample
from memfactory.engines.hf import packed_weights
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.hf.packed_weights import PackedWeights, can_pack
from memfactory.engines.options import HfEngineConfig
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Reply, Sampling, SamplingParams

pytestmark = pytest.mark.skipif(not can_pack(), reason="needs a processor on which oneDNN multiplies float32")


@pytest.fixture
def model(small_model_path: Path):
    return load_model(ModelConfig(path=str(small_model_path)), training=False)


def prompts(tokens: int = 24):
    asked = ["What is the code of Alice?", "The city of Carol is Rome.", "What is the code of Alice?", "Rome"]
    return [
        ((Message("user", text),), Sampling(tokens, SamplingParams(1.0), seed=seed)) for seed, text in enumerate(asked)
    ]


def engine(model, chat, gib: float = 1.0, **options: object) -> HfEngine:
    return HfEngine(model, chat, HfEngineConfig(packed_weights_gib=gib, **options))


def begin(sampler: HfEngine, steps: int = 5, count: int = 4) -> None:
    """Take so many steps of 24 with so many rows."""
    for key, (messages, sampling) in enumerate(prompts()[:count]):
        sampler.submit(key, messages, sampling)
    for _ in range(steps):
        assert sampler.step() == []


def pack(weights: PackedWeights) -> None:
    for _ in range(5):
        weights.count_step(8)


def ids(replies: list[Reply]) -> list[tuple[int, ...]]:
    return [reply.tokens.reply_ids for reply in replies]


def packed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("share", [True, False])
def test_replies_are_those_of_the_weights_themselves(model, chat, share):
    one = sample(engine(model, chat, share_prefixes=share), prompts())
    other = sample(engine(model, chat, 0, share_prefixes=share), prompts())
    assert ids(one) == ids(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.tokens.logprobs == pytest.approx(theirs.tokens.logprobs, abs=1e-5, rel=0)


def test_the_copy_exists_only_while_replies_are_sampled(model, chat):
    sampler = engine(model, chat)
    begin(sampler)
    # Of the seven matrices of a layer those of 32 x 64 (keys and values) are too small to gain.
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = {f"model.layers.{layer}.{part}" for layer in range(2) for part in parts}
    assert set(packed(model)) == {*names, "lm_head"}
    sampler.cancel()
    assert packed(model) == []


def test_the_copy_is_made_when_it_has_become_worth_its_cost(model, chat):
    sampler = engine(model, chat)
    begin(sampler, steps=4)
    assert packed(model) == []
    sampler.step()
    assert "lm_head" in packed(model)
    sampler.cancel()
    begin(sampler, steps=10, count=3)
    assert packed(model) == []


def test_a_step_that_fails_leaves_nothing_behind(model, chat, monkeypatch):
    sampler = engine(model, chat)
    begin(sampler)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("memfactory.engines.hf.engine.sample_tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.step()
    assert packed(model) == []


def test_what_there_is_no_memory_for_is_not_copied(model, chat, monkeypatch):
    expected = sample(engine(model, chat, 0), prompts())
    made = iter(range(3))
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def scarce(*given):
        if next(made, None) is None:
            raise RuntimeError("could not allocate")
        return reorder(*given)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", scarce)
    sampler = engine(model, chat)
    begin(sampler)
    # One of the three was for the trial of whether there is such a layout.
    assert len(packed(model)) == 2
    sampler.cancel()
    assert ids(sample(sampler, prompts())) == ids(expected)


def test_none_is_made_where_none_is_allowed(model, chat):
    begin(engine(model, chat, 0))
    assert packed(model) == []


def test_the_copy_stays_within_its_limit(model):
    weights = PackedWeights(model, 2 * 64 * 64 * 4)
    pack(weights)
    # 16,384 bytes each; the feed-forward parts and the head have more.
    assert packed(model) == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"]


class Products(TorchDispatchMode):
    """Notes the states of every product with packed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "mkldnn::_linear_pointwise":
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_products_are_compiled_for_few_numbers_of_rows(model):
    weights = PackedWeights(model, 2**30)
    layer = model.model.layers[0].mlp.up_proj
    with torch.inference_mode():
        pack(weights)
        shapes = [(rows, 1, 64) for rows in (1, 2, 8, 9, 63, 64, 65)] + [(2, 3, 64), (5, 64)]
        with Products() as products:
            found = [layer(torch.ones(shape)) for shape in shapes]
        weights.release()
        expected = [layer(torch.ones(shape)) for shape in shapes]
    # Not a single row, nor more than 64, nor a prompt; the others filled up to a multiple of 8.
    assert products.shapes == [(rows, 1, 64) for rows in (8, 8, 16, 64, 64)]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-6)


def test_new_weights_are_sampled_from_at_once(model, chat):
    sampler = engine(model, chat)
    before = sample(sampler, prompts())
    with torch.no_grad():
        for weight in model.parameters():
            # In the way that leaves no trace of a change at the parameter.
            weight.data.mul_(1.5)
    after = sample(sampler, prompts())
    expected = sample(engine(model, chat, 0), prompts())
    assert ids(after) == ids(expected)
    assert ids(after) != ids(before)


def test_gradients_reach_the_weights_while_the_copy_is_there(model):
    tokens = torch.arange(10, 20)[None]

    def slope() -> torch.Tensor:
        model.zero_grad()
        model(input_ids=tokens).logits.square().mean().backward()
        return model.model.layers[0].mlp.down_proj.weight.grad.clone()

    expected = slope()
    weights = PackedWeights(model, 2**30)
    pack(weights)
    assert packed(model)
    assert torch.equal(slope(), expected)


def test_two_engines_over_one_model_do_not_stand_in_each_others_way(model, chat):
    one, other = engine(model, chat), engine(model, chat)
    expected = ids(sample(engine(model, chat, 0), prompts()))
    begin(one)
    begin(other)
    one.cancel()
    replies = {}
    while other.pending():
        replies |= dict(other.step())
    assert [replies[key].tokens.reply_ids for key in sorted(replies)] == expected
    assert packed(model) == []


def test_only_float32_weights_of_plain_linear_layers_are_copied():
    class Doubled(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    layers = nn.ModuleDict(
        {"plain": nn.Linear(64, 64), "doubled": Doubled(64, 64), "low": nn.Linear(64, 64).bfloat16()}
    )
    weights = PackedWeights(layers, 2**30)
    with torch.inference_mode():
        pack(weights)
        assert packed(layers) == ["plain"]
        states = torch.randn(5, 1, 64)
        found = layers["plain"](states)
        weights.release()
        assert torch.allclose(found, layers["plain"](states), atol=1e-6)


def test_under_autocast_nothing_is_copied(model):
    weights = PackedWeights(model, 2**30)
    with torch.autocast("cpu", torch.bfloat16):
        pack(weights)
    assert packed(model) == []


def test_adapters_are_sampled_with(model, chat):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    one = sample(engine(adapted, chat), prompts())
    other = sample(engine(adapted, chat, 0), prompts())
    assert ids(one) == ids(other)
    begin(engine(adapted, chat))
    assert any("base_layer" in name for name in packed(adapted))


def test_the_memory_of_a_large_copy_goes_back_to_the_system(model, monkeypatch):
    returned = []
    monkeypatch.setattr(packed_weights, "return_free_memory", lambda: returned.append(True))
    weights = PackedWeights(model, 2**30)
    pack(weights)
    weights.release()
    assert not returned
    monkeypatch.setattr(packed_weights, "_RETURNED_BYTES", 1)
    pack(weights)
    weights.release()
    weights.release()
    assert returned == [True]

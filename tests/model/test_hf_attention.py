"""Tree attention against attention under one explicit mask."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from memfactory.model.kernels import attend_block, attend_by_formula, formula_gradient, merge
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from memfactory.model.tree_attention import NAME, DecodingStep, Forest, LayerQueries, Past, SharedKeys, tree_attention

# Two trees: 0-4 with children 4-7 (which has children 7-9 and 9-12) and 12-14; and 14-19 alone.
FOREST = Forest(
    segments=((0, 4), (4, 7), (7, 9), (9, 12), (12, 14), (14, 19)),
    branches=(((4, 14), (0, 4)), ((7, 12), (4, 7))),
)
TURNS = [(0, 4, 4, 7, 7, 9), (0, 4, 4, 7, 9, 12), (0, 4, 12, 14), (14, 19)]
POSITIONS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 9, 4, 5, 0, 1, 2, 3, 4]


def places(turn: tuple[int, ...]) -> list[int]:
    """The places in the row of a turn's tokens, from its segments."""
    return [place for start, stop in zip(turn[::2], turn[1::2], strict=True) for place in range(start, stop)]


def visible() -> torch.Tensor:
    """[19, 19]: who sees whom, from the turns themselves."""
    mask = torch.zeros(19, 19, dtype=torch.bool)
    for turn in TURNS:
        path = places(turn)
        for index, place in enumerate(path):
            mask[place, path[: index + 1]] = True
    return mask


def tensors(heads: int = 6, kv_heads: int = 2, tokens: int = 19, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, heads, tokens, 8), (1, kv_heads, tokens, 8), (1, kv_heads, tokens, 8))
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return list(torch.autograd.grad((output * weight).sum(), inputs))


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_a_forest_attends_as_under_its_mask_and_so_do_its_gradients(kv_heads):
    query, key, value = tensors(kv_heads=kv_heads)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=visible(), scale=0.3, enable_gqa=True)
    output = FOREST.attend(0, query, key, value, 0.3).transpose(1, 2)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    for one, other in zip(
        gradients(output, [query, key, value]), gradients(expected, [query, key, value]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_trimmed_layer_has_output_and_gradient_of_its_queries():
    asked = [0, 5, 6, 8, 13, 16, 17]
    few = replace(FOREST, trimmed=LayerQueries(3, ((0, 1), (5, 7), (8, 9), (13, 14), (16, 18))))
    inputs = tensors()
    whole = FOREST.attend(3, *inputs, 0.3)
    output = few.attend(3, *inputs, 0.3)
    torch.testing.assert_close(output[:, asked], whole[:, asked], rtol=0, atol=1e-12)
    assert not output[:, [place for place in range(19) if place not in asked]].any()
    # A sum over the tokens that ask has one gradient, whoever else asks.
    for one, other in zip(gradients(output[:, asked], inputs), gradients(whole[:, asked], inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert torch.equal(few.attend(2, *inputs, 0.3), whole)


def test_the_formula_gives_what_the_kernel_gives():
    query, key, value = tensors()
    for causal in (False, True):
        output, weight, _ = attend_block(query, key, value, 0.3, causal=causal)
        plain, plain_weight = attend_by_formula(query, key, value, 0.3, causal, None)
        torch.testing.assert_close(plain, output, rtol=0, atol=1e-12)
        torch.testing.assert_close(plain_weight, weight, rtol=0, atol=1e-12)
        slope = torch.ones_like(output)
        ours = formula_gradient(slope, (query, key, value), (plain, plain_weight), 0.3, causal)
        for one, other in zip(ours, torch.autograd.grad(output.sum(), [query, key, value]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_two_halves_of_the_keys_merge_into_all_of_them():
    query, key, value = (tensor.detach() for tensor in tensors())
    whole = attend_block(query, key, value, 0.3)[:2]
    first, second = (attend_block(query, key[:, :, h], value[:, :, h], 0.3)[:2] for h in (slice(0, 5), slice(5, 19)))
    for one, other in zip(merge(*first, *second), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_came_before_the_row_counts_as_if_it_stood_in_it():
    query, key, value = tensors()
    rest = Forest(
        segments=((0, 3), (3, 5), (5, 8), (8, 10), (10, 15)),
        branches=(((3, 8), (0, 3)),),
        pasts=(Past((0, 10), [(key[:, :, :6], value[:, :, :6])], 4),),
    )
    part = rest.attend(0, query[:, :, 4:], key[:, :, 4:], value[:, :, 4:], 0.3)
    torch.testing.assert_close(part, FOREST.attend(0, query, key, value, 0.3)[:, 4:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_decoding_step_sees_its_own_slots_and_what_it_shares():
    # Turns 0, 1 and 2 without their first 4 tokens in slots of their own, turn 3 all in slots; the newest token asks.
    query, key, value = tensors()
    own = [places(turn)[4:] if turn[0] == 0 else places(turn) for turn in TURNS]
    keys, values = torch.zeros(2, 4, 2, 8, 8, dtype=torch.float64)
    seen = torch.zeros(4, 8, dtype=torch.bool)
    for row, path in enumerate(own):
        keys[row, :, : len(path)], values[row, :, : len(path)] = key[0][:, path], value[0][:, path]
        seen[row, : len(path)] = True
    last = [path[-1] for path in own]
    shared = SharedKeys(torch.tensor([2, 0, 1]), ((3, [(key[:, :, :4], value[:, :, :4])]),))
    asked = query[0][:, last].transpose(0, 1).unsqueeze(2)
    output = DecodingStep(seen, (shared,)).attend(0, asked, keys, values, 0.3)
    expected = FOREST.attend(0, query, key, value, 0.3)[0, last]
    torch.testing.assert_close(output[:, 0], expected, rtol=0, atol=1e-12)


def test_a_model_over_a_forest_gives_each_turn_what_it_gives_it_alone():
    model = load_model(ModelConfig(path="tiny", dtype="float32"), training=True)
    ids = torch.arange(100, 119)
    before = model.config._attn_implementation
    with tree_attention(model):
        row = model(
            input_ids=ids[None], position_ids=torch.tensor([POSITIONS]), use_cache=False, attention_plan=FOREST
        ).logits[0]
    assert model.config._attn_implementation == before
    for turn in TURNS:
        alone = model(input_ids=ids[places(turn)][None], use_cache=False).logits[0]
        torch.testing.assert_close(row[places(turn)], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("beyond", ["attention_mask", "dropout", "softcap", "s_aux", "position_bias"])
def test_options_beyond_tree_attention_are_refused_and_not_left_out(beyond):
    attention, module = AttentionInterface()[NAME], torch.nn.Module()
    module.layer_idx = 0
    given = {"attention_mask": None, "dropout": 0.0, "softcap": None, "s_aux": None, "attention_plan": FOREST}
    assert attention(module, *tensors(), **given)[0].shape == (1, 19, 6, 8)
    with pytest.raises(ValueError, match="at random" if beyond == "dropout" else "does not support"):
        attention(module, *tensors(), **{**given, beyond: 0.1 if beyond == "dropout" else torch.ones(6)})
    del module.layer_idx
    module.layer_idx = None
    with pytest.raises(ValueError, match="no numbers"):
        attention(module, *tensors(), **given)


def test_half_precision_by_autocast_reaches_the_kernel():
    query, key, value = tensors(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = FOREST.attend(0, query, key, value, 0.3)
    assert output.dtype == torch.bfloat16
    exact = FOREST.attend(0, query, key, value, 0.3)
    torch.testing.assert_close(output.float(), exact, rtol=0.03, atol=0.03)
    assert all(one.dtype == torch.float32 for one in gradients(output.float(), [query, key, value]))

"""Linear layers through oneDNN: the same products and gradients, for any number of rows, wherever they are used."""

import copy
import pickle

import pytest
import torch
from torch import nn

from memfactory.engines.hf.packed_weights import PackedWeights
from memfactory.model import linear
from memfactory.model.linear import FastLinear, add_products, has_fast_products, is_linear, use_fast_products

needs_products = pytest.mark.skipif(not has_fast_products(), reason="needs oneDNN and AVX-512")


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(256, 192, bias=bias)


def gradients(module: nn.Module, states: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of states and parameters."""
    states = states.clone().requires_grad_(True)
    output = module(states)
    # Of one sign, so that no sum of them cancels.
    slopes = torch.linspace(0.5, 1, output.numel()).view(output.shape).to(output.dtype)
    values = torch.autograd.grad(output, [states, *module.parameters()], slopes)
    return [output.detach(), *values]


@needs_products
@pytest.mark.parametrize("rows", [16, 17, 63, 64, 65, 300, 513, 700])
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradients_are_those_of_float64(rows: int, bias: bool):
    module = layer(bias)
    states = torch.randn(1, rows, 256, generator=torch.Generator().manual_seed(1))
    expected = gradients(copy.deepcopy(module).double(), states.double())
    use_fast_products(module)
    assert type(module) is FastLinear
    for found, exact in zip(gradients(module, states), expected, strict=True):
        # Sums of at most 700 products of numbers of size 1: float32 is off by some 700^0.5 x 6e-8 of the largest.
        assert found.shape == exact.shape and found.dtype == torch.float32
        assert (found.double() - exact).abs().max() <= 2e-6 * exact.abs().max()


@needs_products
def test_a_frozen_weight_and_a_leaf_input_have_no_gradient():
    module = layer()
    use_fast_products(module)
    module.requires_grad_(False)
    states = torch.randn(32, 256, requires_grad=True)
    module(states).sum().backward()
    assert module.weight.grad is None and states.grad is not None
    module.requires_grad_(True)
    module(states.detach()).sum().backward()
    assert module.weight.grad is not None


@needs_products
def test_equal_calls_give_equal_bits():
    module = layer()
    use_fast_products(module)
    states = torch.randn(100, 256)
    first, second = gradients(module, states), gradients(module, states)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_narrow_layers_and_few_rows_keep_the_product_of_torch():
    narrow = nn.Linear(128, 512)
    use_fast_products(narrow)
    assert type(narrow) is nn.Linear
    wide = layer()
    states = torch.randn(15, 256)
    expected = wide(states)
    use_fast_products(wide)
    assert torch.equal(wide(states), expected)


def test_subclasses_are_left_alone():
    class Quantised(nn.Linear):
        """Computes something else."""

    module = Quantised(256, 256)
    use_fast_products(module)
    assert type(module) is Quantised and not is_linear(module)


@needs_products
def test_a_fast_layer_can_be_copied_and_pickled():
    module = nn.Sequential(layer())
    use_fast_products(module)
    states = torch.randn(20, 256)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(states), module(states))


@needs_products
def test_other_types_and_autocast_are_the_business_of_torch():
    module = layer()
    use_fast_products(module)
    states = torch.randn(20, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(states).dtype == torch.bfloat16
    assert module.double()(states.double()).dtype == torch.float64


@needs_products
def test_weights_are_still_packed_for_decoding():
    module = nn.Sequential(layer())
    use_fast_products(module)
    packed = PackedWeights(module, 2**30)
    for _ in range(5):
        packed.count_step(8)
    assert "forward" in vars(module[0])
    packed.release()
    assert "forward" not in vars(module[0])


@needs_products
def test_few_products_are_compiled(monkeypatch):
    seen = set()
    product = linear._product

    def counting(states, weight, bias=None):
        seen.add(len(states))
        return product(states, weight, bias)

    monkeypatch.setattr(linear, "_product", counting)
    module = layer()
    use_fast_products(module)
    with torch.no_grad():
        for rows in range(16, 1100):
            module(torch.zeros(rows, 256))
    # Multiples of 16 to 64, of 64 to 512, of 128 to 1,152: oneDNN keeps half a MiB for each.
    assert seen == {16, 32, 48, *range(64, 513, 64), *range(640, 1153, 128)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_added_block_by_block(monkeypatch, dtype):
    monkeypatch.setattr(linear, "_BLOCK", 128)
    ones, others, total = (torch.randn(shape) for shape in ((300, 500), (300, 200), (300, 200)))
    ones = ones[:, 100:400]
    expected = total.double() + ones.double().t() @ others.double()
    found = total.to(dtype)
    add_products(found, ones.to(dtype), others.to(dtype))
    # Sums of 300 products of normal numbers: 300^0.5 x 6e-8 x the largest product, about 20.
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-4)

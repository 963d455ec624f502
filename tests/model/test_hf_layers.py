"""Norms and gated feed-forward parts of our own against transformers'."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, OlmoConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.emulated_cuda import CUDA, emulated_cuda, on_cuda
from memfactory.model.fused_layers import FusedGate, FusedNorm, fuse_layers, fusible, keep_products
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig

SIZES = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FLOAT, HALF = torch.float32, torch.bfloat16
IDS = torch.arange(20).view(2, 10)


def models(description, dtype=torch.float64):
    """The model as transformers has it and fused, with norms that are not all 1."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(description).to(dtype)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if "norm" in name:
                weight += torch.linspace(-0.5, 0.5, weight.numel(), dtype=dtype)
    fused = deepcopy(plain)
    fuse_layers(fused)
    return plain, fused


@pytest.mark.parametrize(
    ("description", "expected"), [(LlamaConfig, True), (Qwen3Config, True), (Gemma2Config, False), (OlmoConfig, False)]
)
def test_what_can_be_fused_is_known_without_weights(description, expected):
    config = description(**SIZES, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert fusible(model) == expected
    fused = models(config, torch.float32)[1]
    assert (min(kinds(fused)) > 0) == expected


def kinds(model) -> tuple[int, int]:
    return tuple(sum(isinstance(module, kind) for module in model.modules()) for kind in (FusedNorm, FusedGate))


def loss_of(model, dtype=torch.float32):
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        return model(input_ids=IDS, labels=IDS, use_cache=False).loss


@pytest.mark.parametrize("description", [Qwen3Config(**SIZES), Qwen2Config(**SIZES), LlamaConfig(**SIZES)])
@pytest.mark.parametrize("recomputes", [True, False])
def test_loss_and_gradients_are_those_of_the_plain_model(description, recomputes):
    plain, fused = models(description, torch.float32)
    # Two norms a layer and one at the end, and in Qwen3 those of queries and keys as well.
    assert kinds(fused) == (9 if isinstance(description, Qwen3Config) else 5, 2)
    if not recomputes:
        keep_products(fused)
    losses = [loss_of(model) for model in (plain, fused)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(
            other.grad, one.grad, rtol=0, atol=1e-6 * float(one.grad.abs().max()) + 1e-9, msg=name
        )


def test_gradients_hold_against_finite_differences():
    _, fused = models(Qwen3Config(**SIZES))
    norm, part = fused.model.norm, fused.model.layers[0].mlp
    states = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda given, weight: torch.func.functional_call(norm, {"weight": weight}, given), (states, norm.weight)
    )
    assert torch.autograd.gradcheck(part, (states,))


def test_less_is_kept_for_the_backward_pass():
    plain, fused = models(Qwen3Config(**SIZES), torch.float32)

    def kept(model):
        sizes = {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model.layers[0].mlp(torch.randn(1, 100, 24, requires_grad=True))
        return sum(sizes.values()) - sum(weight.numel() for weight in model.model.layers[0].mlp.parameters())

    # The states, and of gate, silu(gate), up and product only the first and the third. (The hook inside hides the
    # product of the fused part from the one outside, which recomputes it.)
    assert kept(plain) == 100 * (24 + 4 * 40)
    assert kept(fused) == 100 * (24 + 2 * 40) - sum(w.numel() for w in [fused.model.layers[0].mlp.down_proj.weight])


def test_half_precision_is_as_near_as_the_plain_model_is():
    plain, fused = models(Qwen3Config(**SIZES), torch.float32)
    exact, rounded, ours = loss_of(plain), loss_of(plain, torch.bfloat16), loss_of(fused, torch.bfloat16)
    assert abs(ours - exact) <= 1.5 * abs(rounded - exact) + 1e-3
    ours.backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in fused.parameters())


def test_norms_are_float32_under_autocast_too():
    plain, fused = models(Qwen3Config(**SIZES), torch.float32)
    states = 3 * torch.randn(1, 50, 24, generator=torch.Generator().manual_seed(1))
    slope = torch.randn(1, 50, 24, generator=torch.Generator().manual_seed(2))
    outcomes = []
    for model in (plain, fused):
        given = states.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = model.model.norm(given)
        outcomes.append((output, *torch.autograd.grad((output * slope).sum(), [given, model.model.norm.weight])))
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


class GatedNorm(LlamaRMSNorm):
    """A norm that is called with more than its states, as those of linear attention are."""

    def forward(self, hidden_states, gate=None):
        normed = super().forward(hidden_states)
        return normed if gate is None else normed * gate


class StrictNorm(LlamaRMSNorm):
    """A norm that cannot be tried on states alone."""

    def forward(self, hidden_states, gate):
        return super().forward(hidden_states) * gate


@pytest.mark.parametrize("kind", [GatedNorm, StrictNorm])
def test_norms_that_take_more_than_states_stay_as_they_are(kind):
    model = torch.nn.ModuleList([kind(24), LlamaRMSNorm(24)])
    fuse_layers(model)
    assert kinds(model) == (1, 0)
    assert not model[0](torch.ones(1, 24), torch.zeros(24)).any()


def test_norms_of_another_kind_stay_as_they_are():
    plain, fused = models(Gemma2Config(**SIZES), torch.float32)
    # Gemma's norms multiply by 1 + weight, and its feed-forward parts use GELU.
    assert kinds(fused) == (0, 0)
    torch.testing.assert_close(loss_of(fused), loss_of(plain), rtol=0, atol=0)


def test_a_loaded_model_is_fused_unless_that_is_switched_off(tmp_path):
    fused = load_model(ModelConfig(path="tiny", dtype="float32"), training=True)
    plain = load_model(ModelConfig(path="tiny", dtype="float32", fused_layers=False), training=True)
    # Four layers of two norms and two of queries and keys, and the last one.
    assert kinds(fused) == (17, 4) and kinds(plain) == (0, 0)
    assert kinds(deepcopy(fused)) == (17, 4)
    torch.testing.assert_close(fused(IDS).logits, plain(IDS).logits, rtol=0, atol=2e-5)
    fused.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(saved(IDS).logits, plain(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize(("states_type", "weight_type"), [(FLOAT, FLOAT), (HALF, HALF), (HALF, FLOAT)])
def test_a_norm_on_a_gpu_is_one_kernel_each_way_with_the_same_gradient(states_type, weight_type):
    norm = LlamaRMSNorm(16, eps=1e-6).to(weight_type)
    states, slope = torch.linspace(-2, 3, 48).view(3, 16).sin(), torch.linspace(1, -1, 48).view(3, 16).cos()
    with torch.no_grad():
        norm.weight += torch.linspace(-0.5, 0.5, 16)
    results = []
    with emulated_cuda() as device:
        for there in (False, True):
            module = on_cuda(deepcopy(norm)) if there else deepcopy(norm)
            module.__class__ = type("Norm", (FusedNorm, LlamaRMSNorm), {})
            place = CUDA if there else torch.device("cpu")
            inputs = states.clone().to(place).to(states_type).requires_grad_()
            upstream = slope.to(place).to(torch.promote_types(states_type, weight_type))
            device.reset()
            output = module(inputs)
            output.backward(upstream)
            results.append([value.cpu().float() for value in (output, inputs.grad, module.weight.grad)])
    # Beside both kernels only conversions between two types.
    assert (+device.kernels).keys() <= {"_fused_rms_norm", "_fused_rms_norm_backward", "_to_copy"}
    assert ("_to_copy" in +device.kernels) == (states_type != weight_type)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **({} if HALF != states_type else {"rtol": 2e-2, "atol": 2e-2}))

"""Rotary embeddings on a GPU: those of transformers, with their gradient, in few kernels."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as interleaved
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

from benchmarks.emulated_cuda import CUDA, CudaTensor, emulated_cuda
from memfactory.model.rotary import Rotation, fuse_rotary

WIDTH = 16


def original(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


def inputs(tokens: int, dtype: torch.dtype, turn_dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    angles = torch.rand(2, tokens, WIDTH // 2, generator=draw).repeat(1, 1, 2) * 6
    states = [torch.randn(2, tokens, heads, WIDTH, generator=draw).transpose(1, 2).to(dtype) for heads in (4, 2)]
    return [*states, angles.cos().to(turn_dtype), angles.sin().to(turn_dtype)]


@pytest.mark.parametrize(
    ("dtype", "turn_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
@pytest.mark.parametrize(("tokens", "graded"), [(1, False), (7, False), (7, True)])
def test_states_are_turned_as_by_transformers_in_fewer_kernels(dtype, turn_dtype, tokens, graded):
    values = inputs(tokens, getattr(torch, dtype), getattr(torch, turn_dtype))
    slopes = [torch.randn(2, heads, tokens, WIDTH, generator=torch.Generator().manual_seed(1)) for heads in (4, 2)]
    rotation, results, kernels = Rotation(original), [], []
    with emulated_cuda() as device, torch.set_grad_enabled(graded):
        rotation(*(value.to(CUDA) for value in values))
        for rotate in (original, rotation):
            there = [value.to(CUDA).requires_grad_(graded and index < 2) for index, value in enumerate(values)]
            upstream = [slope.to(CUDA) for slope in slopes]
            device.reset()
            turned = list(rotate(*there))
            kernels.append(device.kernels.total())
            if graded:
                upstream = [slope.to(one.dtype) for slope, one in zip(upstream, turned)]
                turned += torch.autograd.grad(turned, there[:2], upstream)
            results.append([one.detach().cpu() for one in turned])
    bound = 1e-6 if "bfloat16" not in (dtype, turn_dtype) else 3e-2
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)
    # Ten of transformers. Of ours three for each, or for both and their concatenation; two make the signed sine, once
    # for all layers; conversions come where the types differ.
    converted = 0 if dtype == turn_dtype else 1 if tokens == 1 else 2
    assert kernels == [10, (4 if tokens == 1 else 6) + 2 + converted]


def test_another_layout_of_the_halves_stays_as_it_is():
    with emulated_cuda():
        values = [value.to(CUDA) for value in inputs(3, torch.float32, torch.float32)]
        expected = interleaved(*values)
        for one, other in zip(Rotation(interleaved)(*values), expected, strict=True):
            assert torch.equal(one.cpu(), other.cpu())


def test_a_cpu_turns_with_the_same_bits(monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", original)
    fuse_rotary(LlamaRotaryEmbedding(modeling_llama.LlamaConfig(hidden_size=64, num_attention_heads=4)))
    assert isinstance(modeling_llama.apply_rotary_pos_emb, Rotation)
    values = inputs(5, torch.float32, torch.float32)
    for one, other in zip(modeling_llama.apply_rotary_pos_emb(*values), original(*values), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("right", [True, False])
def test_liger_turns_where_it_is_installed_and_right(monkeypatch, right):
    calls = []

    def liger_rotary_pos_emb(query, key, cos, sin):
        calls.append(query.shape)
        # As the real one: in place, for heads that lie side by side.
        assert query.transpose(1, 2).is_contiguous() and key.transpose(1, 2).is_contiguous()
        turned = original(query.clone(), key.clone(), cos, sin if right else -sin)
        return query.copy_(turned[0]), key.copy_(turned[1])

    rope = ModuleType("liger_kernel.transformers.rope")
    rope.liger_rotary_pos_emb = liger_rotary_pos_emb
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.rope", rope)
    values = inputs(6, torch.float32, torch.float32)
    with emulated_cuda(), torch.no_grad():
        turned = Rotation(original)(*(value.to(CUDA) for value in values))
        assert all(isinstance(one, CudaTensor) for one in turned)
    # Once in the trial and once for the states; a kernel with other results is tried and left.
    assert len(calls) == (2 if right else 1)
    for one, other in zip(turned, original(*values), strict=True):
        torch.testing.assert_close(one.values, other, rtol=1e-5, atol=1e-5)

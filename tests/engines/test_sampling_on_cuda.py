"""Sampling on an emulated GPU: all tensors there, one wait for a decoding step, and a bounded number of launches."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks import cuda_kernels
from benchmarks.emulated_cuda import Device, emulated_cuda, on_cuda
from memfactory.config.optimizer import LoraOptions
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.model import kernels
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.weights import trainable
from memfactory.types import Message, Reply, Sampling, SamplingParams

WORDS = "the city of ships is on a river and people there work at night in old houses".split()
BF16 = torch.bfloat16
HALF = {"dtype": "bfloat16"}
WAYS = {
    "float32": ({"dtype": "float32"}, {}),
    "autocast": (HALF, {}),
    "bfloat16 weights": (HALF | {"masters": "bfloat16"}, {}),
    "adapters": (HALF | {"lora": True}, {}),
    "copied prompts": (HALF, {"share_prefixes": False}),
    "layers of transformers": (HALF | {"fused_layers": False}, {}),
}


def trained_model(path: Path, *, dtype: str, masters: str = "float32", lora: bool = False, fused_layers: bool = True):
    """The model at `path` as training loads it, adapters that change its results inside of it."""
    config = ModelConfig(path=str(path), dtype=dtype, device="cpu", fused_layers=fused_layers)
    model = load_model(config, training=True, frozen_base=lora, masters=masters)
    if lora:
        model = trainable(model, LoraOptions(rank=4), torch.bfloat16, 0).get_base_model()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model


def submit_groups(engine: HfEngine, *, tokens: int = 6, sampling: SamplingParams = SamplingParams()) -> None:
    """Two groups of three rows: each group shares a long prefix, and each row has an end of its own."""
    draw = random.Random(0)
    for group in range(2):
        shared = " ".join(draw.choices(WORDS, k=30))
        for row in range(3):
            prompt = shared + " " + " ".join(draw.choices(WORDS, k=4 + 3 * row))
            engine.submit((group, row), [Message("user", prompt)], Sampling(tokens, sampling, seed=group * 10 + row))


def steps(engine: HfEngine, device: Device) -> tuple[dict[object, Reply], list[tuple[Counter[str], Counter[str]]]]:
    """The replies, and kernels and waits of each step."""
    replies, counts = {}, []
    while engine.pending():
        device.reset()
        replies |= dict(engine.step())
        counts.append((+device.kernels, +device.waits))
    return replies, counts


def exact_logprobs(model, reply: Reply, vocabulary: int) -> list[float]:
    """The log-probabilities of the reply's tokens under `model` in float32 on the CPU."""
    ids = [*reply.tokens.prompt_ids, *reply.tokens.reply_ids]
    with torch.no_grad():
        logprobs = model.float()(torch.tensor([ids])).logits[0, :, :vocabulary].log_softmax(-1)
    first = len(reply.tokens.prompt_ids) - 1
    return [float(logprobs[first + place, number]) for place, number in enumerate(reply.tokens.reply_ids)]


@pytest.mark.parametrize("way", WAYS)
def test_a_decoding_step_stays_on_the_gpu_and_waits_once(small_model_path: Path, way: str):
    model_options, engine_options = WAYS[way]
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    dtype = getattr(torch, model_options["dtype"])
    with emulated_cuda() as device:
        model = on_cuda(trained_model(small_model_path, **model_options))
        engine = HfEngine(model, chat, HfEngineConfig(**engine_options), compute_dtype=dtype)
        submit_groups(engine)
        replies, counts = steps(engine, device)
    assert len(replies) == 6 and len(counts) == 6
    # The first step prefills, and tries the model out before.
    for _, waits in counts[1:]:
        assert waits == {"tolist": 1}
    reply = replies[1, 2]
    exact = exact_logprobs(trained_model(small_model_path, **model_options), reply, chat.vocab_size)
    assert reply.tokens.logprobs == pytest.approx(exact, abs=1e-4 if way == "float32" else 0.15)


def test_top_p_and_greedy_rows_wait_no_longer(small_model_path: Path):
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    with emulated_cuda() as device:
        model = on_cuda(trained_model(small_model_path, **HALF))
        engine = HfEngine(model, chat, HfEngineConfig(), compute_dtype=torch.bfloat16)
        submit_groups(engine, tokens=3, sampling=SamplingParams(0.8, top_p=0.9, top_k=40))
        engine.submit("greedy", [Message("user", "one more")], Sampling(3, SamplingParams(0.0), seed=3))
        _, counts = steps(engine, device)
    assert [waits for _, waits in counts[1:]] == [{"tolist": 1}] * 2


def engine_of(model, path: Path, **options: object) -> HfEngine:
    return HfEngine(model, load_chat(ModelConfig(path=str(path))), HfEngineConfig(**options), compute_dtype=BF16)


@pytest.mark.parametrize("lora", [False, True])
def test_a_copy_in_bfloat16_is_sampled_and_freed_and_the_model_left_alone(small_model_path: Path, lora: bool):
    with emulated_cuda() as device:
        model = on_cuda(trained_model(small_model_path, **HALF, lora=lora))
        model.train()
        attention, weights = model.config._attn_implementation, [weight.clone() for weight in model.parameters()]
        engine = engine_of(model, small_model_path)
        submit_groups(engine, tokens=3)
        engine.step()
        assert all(weight.dtype == BF16 for weight in engine._forward._model.parameters())
        assert model.training and model.config._attn_implementation == attention
        _, ((copied, _), _) = steps(engine, device)
        assert engine._forward._model is model and model.training
        assert all(torch.equal(one.values, other.values) for one, other in zip(weights, model.parameters()))
        plain = engine_of(model, small_model_path, weight_copy=False)
        submit_groups(plain, tokens=3)
        plain.step()
        assert engine._forward._model is model
        _, ((converted, _), _) = steps(plain, device)
        # Each linear layer converts its weight, and an adapter has two of its own, of another type.
        assert converted.total() > copied.total() + 2 * (7 if not lora else 40)


def test_without_room_for_a_copy_the_weights_themselves_are_sampled(small_model_path: Path, monkeypatch, caplog):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("no more")

    with emulated_cuda() as device:
        engine = engine_of(on_cuda(trained_model(small_model_path, **HALF)), small_model_path)
        with monkeypatch.context() as patch:
            patch.setattr("memfactory.engines.hf.forward.copy_in_type", exhausted)
            submit_groups(engine, tokens=2)
            assert len(steps(engine, device)[0]) == 6
        assert "has no room for a copy of the weights in torch.bfloat16" in caplog.text


@pytest.mark.parametrize("works", [True, False])
def test_ragged_rows_take_one_kernel_and_the_formula_where_it_fails(small_model_path: Path, works: bool, monkeypatch):
    def refused(*arguments, **options):
        raise RuntimeError("no kernel image is available")

    name = "_scaled_dot_product_efficient_attention"
    if not works:
        monkeypatch.setitem(cuda_kernels.KERNELS, name, refused)
    kernels._masked_kernel_works.cache_clear()
    with emulated_cuda() as device:
        engine = engine_of(on_cuda(trained_model(small_model_path, **HALF)), small_model_path)
        submit_groups(engine)
        replies, counts = steps(engine, device)
    kernels._masked_kernel_works.cache_clear()
    # Two layers; rows have copied ends of different lengths into their slots.
    assert [step[name] for step, _ in counts[1:]] == [2 if works else 0] * 5
    reply = replies[0, 1]
    exact = exact_logprobs(trained_model(small_model_path, **HALF), reply, engine.chat.vocab_size)
    assert reply.tokens.logprobs == pytest.approx(exact, abs=0.15)

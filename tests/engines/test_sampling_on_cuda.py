"""Sampling on an emulated GPU: all tensors there, one wait for a decoding step, and a bounded number of launches."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from emulated_cuda import Device, emulated_cuda, on_cuda
from memfactory.config.optimizer import LoraOptions
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.weights import trainable
from memfactory.types import Message, Reply, Sampling, SamplingParams

WORDS = "the city of ships is on a river and people there work at night in old houses".split()
HALF = {"dtype": "bfloat16"}
WAYS = {
    "float32": ({"dtype": "float32"}, {}),
    "autocast": (HALF, {}),
    "bfloat16 weights": (HALF | {"masters": "bfloat16"}, {}),
    "adapters": (HALF | {"lora": True}, {}),
    "copied prompts": (HALF, {"share_prefixes": False}),
    "layers of transformers": (HALF | {"fused_layers": False}, {}),
}


def cuda_model(path: Path, *, dtype: str, masters: str = "float32", lora: bool = False, fused_layers: bool = True):
    """The model at `path` on the emulated GPU, as training loads it."""
    config = ModelConfig(path=str(path), dtype=dtype, device="cpu", fused_layers=fused_layers)
    model = load_model(config, training=True, frozen_base=lora, masters=masters)
    if lora:
        adapted = trainable(model, LoraOptions(rank=4), torch.bfloat16, 0)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
        model = adapted.get_base_model()
    return on_cuda(model)


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


def exact_logprobs(path: Path, reply: Reply, vocabulary: int) -> list[float]:
    """The log-probabilities of the reply's tokens under the float32 model on the CPU."""
    ids = [*reply.tokens.prompt_ids, *reply.tokens.reply_ids]
    model = load_model(ModelConfig(path=str(path), device="cpu", dtype="float32"), training=False)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, :, :vocabulary].log_softmax(-1)
    first = len(reply.tokens.prompt_ids) - 1
    return [float(logprobs[first + place, number]) for place, number in enumerate(reply.tokens.reply_ids)]


@pytest.mark.parametrize("way", WAYS)
def test_a_decoding_step_stays_on_the_gpu_and_waits_once(small_model_path: Path, way: str):
    model_options, engine_options = WAYS[way]
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    dtype = getattr(torch, model_options["dtype"])
    with emulated_cuda() as device:
        model = cuda_model(small_model_path, **model_options)
        engine = HfEngine(model, chat, HfEngineConfig(**engine_options), compute_dtype=dtype)
        submit_groups(engine)
        replies, counts = steps(engine, device)
    assert len(replies) == 6 and len(counts) == 6
    # The first step prefills, and tries the model out before.
    for _, waits in counts[1:]:
        assert waits == {"tolist": 1}
    if way != "adapters":
        reply = replies[1, 2]
        exact = exact_logprobs(small_model_path, reply, chat.vocab_size)
        assert reply.tokens.logprobs == pytest.approx(exact, abs=1e-4 if way == "float32" else 0.15)


def test_top_p_and_greedy_rows_wait_no_longer(small_model_path: Path):
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    with emulated_cuda() as device:
        model = cuda_model(small_model_path, dtype="bfloat16")
        engine = HfEngine(model, chat, HfEngineConfig(), compute_dtype=torch.bfloat16)
        submit_groups(engine, tokens=3, sampling=SamplingParams(0.8, top_p=0.9, top_k=40))
        engine.submit("greedy", [Message("user", "one more")], Sampling(3, SamplingParams(0.0), seed=3))
        _, counts = steps(engine, device)
    assert [waits for _, waits in counts[1:]] == [{"tolist": 1}] * 2

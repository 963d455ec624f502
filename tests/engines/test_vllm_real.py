"""A real vLLM in this process, on a GPU or as its CPU build: replies, log-probabilities and weights, against HF.

All of it is skipped where vLLM is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoConfig, Qwen3ForCausalLM

from memfactory.config.optimizer import LoraOptions
from memfactory.engines.base import sample
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig, VllmEngineConfig, VllmServerConfig
from memfactory.errors import EngineError
from memfactory.model.loading import load_chat, load_model, load_tokenizer, places
from memfactory.model.options import ModelConfig
from memfactory.policy.weights import PolicyWeights, trainable
from memfactory.types import Message, Sampling, SamplingParams

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
GPU = torch.cuda.is_available()
# Float32 sums in another order; measured on the CPU: 1e-5 for the small model and 3e-5 for tiny.
TOLERANCE = 1e-4
TINY = ModelConfig(path="tiny", dtype="float32")
# Long enough to fill blocks of the prefix cache, which hold 128 tokens on the CPU.
ASKS = [
    (
        (Message("user", "The code of Alice is seven. " * 30 + f"What is the code of {'Alice' if n < 6 else 'Bob'}?"),),
        Sampling(20, SamplingParams(0.7), seed=n),
    )
    for n in range(12)
]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    if not GPU:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def vllm_engine(config: ModelConfig, *, rank: int | None = None, **options):
    from memfactory.engines.vllm.engine import VllmEngine

    given = VllmEngineConfig(sleep=GPU, enforce_eager=True, max_model_len=512, **options)
    return VllmEngine(config, load_chat(config), given, rank=rank)


def largest_difference(replies, model, vocabulary: int, temperature: float = 0.7) -> float:
    """Between the replies' log-probabilities and those that `model` gives the same tokens."""
    worst = 0.0
    for reply in replies:
        ids, reply_ids = reply.tokens.prompt_ids, reply.tokens.reply_ids
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *reply_ids]], device=model.device)).logits[0, len(ids) - 1 : -1]
        logprobs = torch.log_softmax(logits[:, :vocabulary].float() / temperature, -1).cpu()
        chosen = logprobs.gather(-1, torch.tensor(reply_ids)[:, None])[:, 0]
        worst = max(worst, (chosen - torch.tensor(reply.tokens.logprobs)).abs().max().item())
    return worst


def disturb(parameters, size: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * size)


def test_replies_weights_and_refusals_of_a_real_vllm(tmp_path: Path, small_model_path: Path):
    # Its kernels want heads of 32; the head of the model gets 67 rows that stand for no token.
    shape = AutoConfig.from_pretrained(small_model_path)
    shape.head_dim, shape.vocab_size = 32, shape.vocab_size + 67
    torch.manual_seed(0)
    Qwen3ForCausalLM(shape).save_pretrained(tmp_path)
    load_tokenizer(ModelConfig(path=str(small_model_path))).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype="float32")
    chat, model, engine = load_chat(config), load_model(config, training=False), vllm_engine(config)

    replies = sample(engine, ASKS)
    assert [reply.tokens.prompt_ids for reply in replies] == [chat.prompt_ids(messages) for messages, _ in ASKS]
    assert largest_difference(replies, model, chat.vocab_size) < TOLERANCE
    # A reply's seed is its own: alone it is what it was among others.
    (alone,) = sample(engine, ASKS[3:4])
    assert alone.tokens.reply_ids == replies[3].tokens.reply_ids

    greedy = [(messages, Sampling(20, SamplingParams(0.0))) for messages, _ in ASKS[4:8]]
    expected = sample(HfEngine(model, chat, HfEngineConfig()), greedy)
    assert sample(engine, greedy) == expected
    stop = next(letter for letter in expected[0].text[2:] if letter.isascii() and letter.isalpha())
    stopped = [(greedy[0][0], Sampling(20, SamplingParams(0.0), stop=(stop,)))]
    assert sample(engine, stopped) == sample(HfEngine(model, chat, HfEngineConfig()), stopped)

    engine.sleep()
    disturb(model.parameters(), 0.02)
    assert largest_difference(sample(engine, ASKS), model, chat.vocab_size) > 100 * TOLERANCE
    engine.sleep()
    # The same prompts are in the prefix cache with keys and values of the weights before.
    engine.update_weights(PolicyWeights(model, torch.float32, 1))
    assert largest_difference(sample(engine, ASKS), model, chat.vocab_size) < TOLERANCE

    with pytest.raises(EngineError, match="leaves no room for a reply: the context is 512 tokens"):
        engine.submit(0, [Message("user", "seven " * 900)], Sampling(3))
    engine.submit(0, *ASKS[0])
    engine.step()
    engine.cancel()
    assert engine.pending() == 0 and engine.step() == []
    engine.close()


def adapted(seed: int):
    """Tiny with an adapter that has been trained, as it were."""
    model = load_model(TINY, training=True, frozen_base=True)
    network = trainable(model, LoraOptions(rank=8), torch.float32, seed)
    torch.manual_seed(seed)
    disturb([value for name, value in network.named_parameters() if "lora_B" in name], 0.03)
    return network


def test_an_adapter_alone_gives_the_replies_of_the_merged_model():
    network, chat = adapted(1), load_chat(TINY)
    engine = vllm_engine(TINY, rank=8, max_num_seqs=5, max_num_batched_tokens=1024)
    plain = sample(engine, ASKS)
    assert largest_difference(plain, network, chat.vocab_size) > 100 * TOLERANCE
    first = PolicyWeights(network, torch.float32, 1)
    engine.update_weights(first)
    alone = sample(engine, ASKS)
    assert largest_difference(alone, network, chat.vocab_size) < TOLERANCE

    disturb([value for name, value in network.named_parameters() if "lora_" in name], 0.01)
    assert largest_difference(alone, network, chat.vocab_size) > 100 * TOLERANCE
    engine.sleep()
    engine.update_weights(PolicyWeights(network, torch.float32, 2))
    again = sample(engine, ASKS)
    assert largest_difference(again, network, chat.vocab_size) < TOLERANCE

    engine._takes_adapters = False
    engine.update_weights(PolicyWeights(network, torch.float32, 2))
    merged = sample(engine, ASKS)
    assert largest_difference(merged, network, chat.vocab_size) < TOLERANCE
    assert [reply.tokens.reply_ids for reply in merged] == [reply.tokens.reply_ids for reply in again]

    # After the merged weights an adapter gets its own base back first.
    engine._takes_adapters = True
    engine.update_weights(PolicyWeights(network, torch.float32, 3))
    assert largest_difference(sample(engine, ASKS), network, chat.vocab_size) < TOLERANCE
    engine.close()


def test_a_stored_adapter_is_part_of_the_model_from_the_start(tmp_path: Path):
    network, chat = adapted(2), load_chat(TINY)
    PolicyWeights(network, torch.float32, 1).write_adapter(tmp_path)
    # On the CPU a prompt with a seed cannot be prefilled in parts, so there is room for all of them at once.
    config = TINY.model_copy(update={"adapter": str(tmp_path)})
    engine = vllm_engine(config, prefix_caching=False, max_num_batched_tokens=8192)
    assert largest_difference(sample(engine, ASKS), network, chat.vocab_size) < TOLERANCE
    engine.close()


def mean_difference(replies, network, vocabulary: int) -> float:
    """Between the replies' log-probabilities and the trainer's, which computes in bfloat16 by autocast."""
    values = []
    for reply in replies:
        ids, reply_ids = reply.tokens.prompt_ids, reply.tokens.reply_ids
        given = torch.tensor([[*ids, *reply_ids]], device=network.device)
        with torch.no_grad(), torch.autocast(network.device.type, dtype=torch.bfloat16):
            logits = network(given).logits[0, len(ids) - 1 : -1]
        logprobs = torch.log_softmax(logits[:, :vocabulary].float(), -1).cpu()
        chosen = logprobs.gather(-1, torch.tensor(reply_ids)[:, None])[:, 0]
        values += (chosen - torch.tensor(reply.tokens.logprobs)).abs().tolist()
    return fmean(values)


def test_in_bfloat16_an_adapter_alone_is_nearer_to_the_trainer():
    config = TINY.model_copy(update={"dtype": "bfloat16"})
    model, chat = load_model(config, training=True, frozen_base=True), load_chat(config)
    network = trainable(model, LoraOptions(rank=8), torch.bfloat16, 1)
    torch.manual_seed(5)
    disturb([value for name, value in network.named_parameters() if "lora_B" in name], 0.01)
    names, codes = ("Alice", "Bob", "Carol", "Dora"), ("seven", "nine")
    asks = [
        ((Message("user", f"The code of {a} is {b}. What is the code of {c}?"),), Sampling(24, seed=ord(a[0])))
        for a in names for b in codes for c in names
    ]  # fmt: skip
    found = {}
    engine = vllm_engine(config, rank=8)
    for engine._takes_adapters in (True, False):
        engine.update_weights(PolicyWeights(network, torch.bfloat16, 1))
        found[engine._takes_adapters] = mean_difference(sample(engine, asks), network, chat.vocab_size)
    engine.close()
    # Measured on the CPU: 0.024 and 0.030.
    assert found[True] < found[False]


# A server of its own

PATIENCE = 600.0


@pytest.fixture
def server_url(monkeypatch) -> Iterator[str]:
    """The address of a real server over tiny, started by the command of docs/vllm.md, which takes a minute or two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", places(TINY)[0]]
    command += ["--host", "127.0.0.1", "--port", str(port), "--logprobs-mode", "processed_logprobs"]
    command += ["--worker-extension-cls", "memfactory.engines.vllm.worker.WeightReceiver"]
    command += ["--enable-lora", "--max-lora-rank", "8"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_server_gives_the_replies_of_the_synced_weights(server_url: str):
    from memfactory.engines.vllm.server import VllmServerEngine

    chat = load_chat(TINY)
    config = VllmServerConfig(url=server_url, startup_timeout=PATIENCE)
    engine = VllmServerEngine(TINY, chat, config)
    model = load_model(TINY, training=False)
    # Nothing was handed over: the model itself is, before the first conversation.
    replies = sample(engine, ASKS)
    assert [reply.tokens.prompt_ids for reply in replies] == [chat.prompt_ids(messages) for messages, _ in ASKS]
    assert largest_difference(replies, model, chat.vocab_size) < TOLERANCE
    greedy = [(messages, Sampling(20, SamplingParams(0.0))) for messages, _ in ASKS[4:8]]
    assert sample(engine, greedy) == sample(HfEngine(model, chat, HfEngineConfig()), greedy)

    disturb(model.parameters(), 0.01)
    assert largest_difference(replies, model, chat.vocab_size) > 100 * TOLERANCE
    engine.update_weights(PolicyWeights(model, torch.float32, 1))
    assert largest_difference(sample(engine, ASKS), model, chat.vocab_size) < TOLERANCE

    network = adapted(3)
    for version in (2, 3):
        disturb([value for name, value in network.named_parameters() if "lora_" in name], 0.01)
        engine.update_weights(PolicyWeights(network, torch.float32, version))
        assert largest_difference(sample(engine, ASKS), network, chat.vocab_size) < TOLERANCE

    # Another run takes the server over; the first notices at its next reply.
    other = VllmServerEngine(TINY, chat, config)
    other.update_weights(PolicyWeights(model, torch.float32, 1))
    with pytest.raises(EngineError, match="another run uses it"):
        sample(engine, ASKS[:1])
    assert largest_difference(sample(other, ASKS), model, chat.vocab_size) < TOLERANCE
    with pytest.raises(EngineError, match="leaves no room for a reply: the context is 512 tokens"):
        other.submit(0, [Message("user", "seven " * 900)], Sampling(3))

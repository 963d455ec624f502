"""The vLLM engine: what it says where vLLM is missing or does not fit and, where vLLM is installed, its replies.

The second half needs vLLM (or its CPU build) beside the package, so it is skipped elsewhere.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from memfactory.engines.options import ModelConfig, VllmEngineConfig
from memfactory.errors import ConfigError, EngineError
from memfactory.types import Decoding, Message, Sampling

INSTALLED = importlib.util.find_spec("vllm") is not None


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_a_missing_vllm_names_the_extra_and_the_versions_that_fit(small_model_path: Path):
    from memfactory.engines.loading import load_chat
    from memfactory.engines.vllm import VllmEngine

    config = ModelConfig(path=str(small_model_path))
    with pytest.raises(ConfigError, match=r"memfactory\[vllm\]' \(versions 0\.24 to 0\.33 fit\)"):
        VllmEngine(config, load_chat(config), VllmEngineConfig())


def test_versions_are_checked(caplog: pytest.LogCaptureFixture):
    from memfactory.engines.vllm import _check_version

    with pytest.raises(ConfigError, match=r"vllm 0\.23\.1 is too old: versions 0\.24 to 0\.33 fit"):
        _check_version("0.23.1")
    for fitting in ("0.24.0", "0.33.0rc1", "0.32.0+cpu"):
        _check_version(fitting)
    assert not caplog.records
    _check_version("1.0.0")
    assert "newer than what the engine was written for" in caplog.text


@pytest.mark.skipif(not INSTALLED, reason="needs vLLM")
def test_replies_weights_and_refusals_of_a_real_vllm(tmp_path: Path, small_model_path: Path, monkeypatch):
    import torch
    from transformers import AutoConfig, Qwen3ForCausalLM

    from memfactory.engines.base import WeightHolder, sample
    from memfactory.engines.hf import HfEngine
    from memfactory.engines.loading import load_chat, load_model, load_tokenizer
    from memfactory.engines.options import HfEngineConfig
    from memfactory.engines.vllm import VllmEngine

    if not torch.cuda.is_available():
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    # Its kernels want heads of 32; the head of the model gets 67 rows that stand for no token.
    shape = AutoConfig.from_pretrained(small_model_path)
    shape.head_dim, shape.vocab_size = 32, shape.vocab_size + 67
    torch.manual_seed(0)
    Qwen3ForCausalLM(shape).save_pretrained(tmp_path)
    load_tokenizer(ModelConfig(path=str(small_model_path))).save_pretrained(tmp_path)

    config = ModelConfig(path=str(tmp_path), dtype="float32")
    chat, model = load_chat(config), load_model(config, training=False)
    engine = VllmEngine(
        config, chat, VllmEngineConfig(sleep=torch.cuda.is_available(), enforce_eager=True, max_model_len=512)
    )
    assert isinstance(engine, WeightHolder)

    def largest_difference(replies) -> float:
        worst = 0.0
        for reply in replies:
            ids, reply_ids = reply.tokens.prompt_ids, reply.tokens.reply_ids
            with torch.no_grad():
                logits = model(torch.tensor([[*ids, *reply_ids]], device=model.device)).logits[0, len(ids) - 1 : -1]
            logprobs = torch.log_softmax(logits[:, : chat.vocab_size].float() / 0.7, -1).cpu()
            chosen = logprobs.gather(-1, torch.tensor(reply_ids)[:, None])[:, 0]
            worst = max(worst, (chosen - torch.tensor(reply.tokens.logprobs)).abs().max().item())
        return worst

    asks = [
        ((Message("user", "The code of Alice " * (1 + index // 4)),), Sampling(20, Decoding(0.7), seed=index))
        for index in range(12)
    ]
    replies = sample(engine, asks)
    assert [reply.tokens.prompt_ids for reply in replies] == [chat.prompt_ids(messages) for messages, _ in asks]
    assert largest_difference(replies) < 1e-4

    greedy = [(messages, Sampling(20, Decoding(0.0))) for messages, _ in asks[:4]]
    expected = sample(HfEngine(model, chat, HfEngineConfig()), greedy)
    assert sample(engine, greedy) == expected
    stop = next(word for word in expected[0].text.split()[1:] if word.isascii())
    stopped = [(greedy[0][0], Sampling(20, Decoding(0.0), stop=(stop,)))]
    assert sample(engine, stopped) == sample(HfEngine(model, chat, HfEngineConfig()), stopped)

    engine.sleep()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    engine.update_weights(model.named_parameters())
    assert largest_difference(sample(engine, asks)) < 1e-4

    with pytest.raises(EngineError, match="leaves no room for a reply: the context is 512 tokens"):
        engine.submit(0, [Message("user", "seven " * 900)], Sampling(3))
    engine.submit(0, *asks[0])
    engine.step()
    engine.cancel()
    assert engine.pending() == 0 and engine.step() == []
    engine.close()


@pytest.mark.skipif(INSTALLED, reason="needs no vLLM")
@pytest.mark.parametrize(
    ("kind", "sleep", "words"),
    [("none", True, "finds no GPU that this build"), ("cpu", True, "cannot sleep on the CPU"), ("cpu", False, None)],
)
def test_platforms_that_cannot_run_it_are_refused(monkeypatch, kind, sleep, words):
    from memfactory.engines.vllm import _prepare_platform

    class Platform:
        def is_unspecified(self) -> bool:
            return kind == "none"

        def is_cpu(self) -> bool:
            return kind == "cpu"

    package, platforms, operations = ModuleType("vllm"), ModuleType("vllm.platforms"), ModuleType("vllm._custom_ops")
    platforms.current_platform = Platform()
    package._custom_ops = operations
    for module in (package, platforms, operations):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    if words is None:
        _prepare_platform(VllmEngineConfig(sleep=sleep))
        assert operations._supports_onednn is False
    else:
        with pytest.raises(ConfigError, match=words):
            _prepare_platform(VllmEngineConfig(sleep=sleep))

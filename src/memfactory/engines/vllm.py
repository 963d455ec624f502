"""vLLM in this process, on the policy's own GPU: fast rollouts from a copy of the weights that is renewed in memory.

Written for the V1 engine of the versions named below. Tried on vLLM's CPU build (0.32), where it runs with
`sleep: false`; sleeping needs a GPU.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from memfactory.engines.base import Key, stop_place
from memfactory.engines.chat import ChatFormat
from memfactory.engines.loading import compute_dtype, load_model, places, resolve_device
from memfactory.engines.options import ModelConfig, VllmEngineConfig
from memfactory.errors import ConfigError, EngineError
from memfactory.types import Message, Reply, Sampling, Stop, Tokens

log = logging.getLogger("memfactory")
# The first version with every call that is made here, and the newest that was read for it.
OLDEST, NEWEST = (0, 24), (0, 33)
NEVER = -100.0


class VllmEngine:
    """Samples replies from vLLM's own copy of the model.

    `update_weights` renews that copy and forgets cached prefixes; `sleep` gives the GPU's memory back until the next
    conversation. Token ids go in and come out, with the log-probabilities of the distribution that was sampled from.
    Raises ConfigError where vLLM is not installed or too old, EngineError for a prompt that does not fit.
    """

    gives_tokens = True

    def __init__(self, model: ModelConfig, chat: ChatFormat, config: VllmEngineConfig) -> None:
        _check_installed()
        # Weights are handed over as tensors of this process, so the engine has to run in it. No usage reports.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        import vllm

        _check_version(vllm.__version__)
        _prepare_platform(config)
        self.chat, self.config = chat, config
        path, adapter = places(model)
        self._llm = vllm.LLM(
            model=path,
            dtype=str(compute_dtype(model, resolve_device(model.device))).removeprefix("torch."),
            trust_remote_code=model.trust_remote_code,
            load_format="dummy" if model.random_weights else "auto",
            generation_config="vllm",
            logprobs_mode="processed_logprobs",
            gpu_memory_utilization=config.gpu_memory_utilization,
            max_model_len=config.max_model_len,
            enforce_eager=config.enforce_eager,
            enable_sleep_mode=config.sleep,
            seed=0,
        )
        self._engine: Any = self._llm.llm_engine
        self._context: int = self._engine.model_config.max_model_len
        vocabulary = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code).get_text_config()
        # Rows of the head that stand for no token of the tokenizer.
        self._no_tokens = dict.fromkeys(range(chat.vocab_size, vocabulary.vocab_size), NEVER)
        self._asked: dict[str, tuple[Key, tuple[int, ...], Sampling]] = {}
        self._numbers = 0
        self._asleep = False
        if adapter is not None:
            merged = load_model(model.model_copy(update={"device": "cpu"}), training=False)
            self.update_weights(merged.state_dict().items())

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        import vllm
        from vllm.sampling_params import RequestOutputKind

        prompt = self.chat.prompt_ids(messages)
        room = self._context - len(prompt)
        if room < 1:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens leaves no room for a reply: the context is {self._context} tokens. "
                "Shorten the chunks or the memory, or raise engine.max_model_len"
            )
        self._wake()
        decoding = sampling.decoding
        params = vllm.SamplingParams(
            max_tokens=min(sampling.max_tokens, room),
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k or -1,
            seed=sampling.seed,
            stop=list(sampling.stop),
            stop_token_ids=sorted(self.chat.stop_ids),
            logit_bias=self._no_tokens or None,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._numbers += 1
        number = str(self._numbers)
        self._engine.add_request(number, vllm.TokensPrompt(prompt_token_ids=list(prompt)), params)
        self._asked[number] = (key, prompt, sampling)

    def step(self) -> list[tuple[Key, Reply]]:
        if not self._asked:
            return []
        finished = []
        for output in self._engine.step():
            if output.finished and output.request_id in self._asked:
                key, prompt, sampling = self._asked.pop(output.request_id)
                finished.append((key, self._reply(prompt, sampling, output.outputs[0])))
        return finished

    def pending(self) -> int:
        return len(self._asked)

    def cancel(self) -> None:
        if self._asked:
            self._engine.abort_request(list(self._asked))
        self._asked.clear()

    def close(self) -> None:
        self.cancel()
        self._engine.engine_core.shutdown()

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take the whole model's weights, by the names of the Hugging Face model's parameters."""
        self._wake()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Give the GPU's memory back until the next conversation or the next weights; nothing may be pending."""
        if self._asked:
            raise ValueError(f"{len(self._asked)} conversations are pending at the engine that is to sleep")
        if self.config.sleep and not self._asleep:
            # Level 1 keeps the weights in the host's memory, so that an evaluation can follow without new ones.
            self._llm.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _reply(self, prompt: tuple[int, ...], sampling: Sampling, output: Any) -> Reply:
        reply_ids = tuple(output.token_ids)
        # A greedy reply is certain under the distribution that it was drawn from.
        certain = sampling.decoding.temperature == 0
        logprobs = tuple(
            0.0 if certain else entry[token].logprob for token, entry in zip(reply_ids, output.logprobs, strict=True)
        )
        stop: Stop = "length" if output.finish_reason == "length" else "stop"
        text = self.chat.reply_text(prompt, reply_ids)
        ended = reply_ids and reply_ids[-1] in self.chat.stop_ids
        end = None if ended else stop_place(text, sampling.stop)
        return Reply(text[:end], stop, Tokens(prompt, reply_ids, logprobs))


def _check_installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine: kind 'vllm' needs the package vllm, which is not installed: pip install 'memfactory[vllm]' "
            f"(versions {_spoken(OLDEST)} to {_spoken(NEWEST)} fit). Kind 'hf' needs nothing more"
        )


def _check_version(given: str) -> None:
    """Refuse a version that is too old; warn of one that nobody has tried."""
    version = tuple(int(part) for part in given.split(".")[:2] if part.isdigit())
    fitting = f"versions {_spoken(OLDEST)} to {_spoken(NEWEST)} fit"
    if version < OLDEST:
        raise ConfigError(f"engine: vllm {given} is too old: {fitting}")
    if version > NEWEST:
        log.warning("vllm %s is newer than what the engine was written for (%s)", given, fitting)


def _prepare_platform(config: VllmEngineConfig) -> None:
    """Refuse a machine that vLLM cannot run on."""
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        raise ConfigError("engine: kind 'vllm' finds no GPU that this build of vLLM can use; kind 'hf' runs anywhere")
    if not current_platform.is_cpu():
        return
    if config.sleep:
        raise ConfigError("engine: vLLM cannot sleep on the CPU; write engine.sleep: false")
    # Its linear layers would keep their packed old weights through `update_weights`, without a word.
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False


def _spoken(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))

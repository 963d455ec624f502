"""vLLM in this process, on the policy's own GPU: fast rollouts from a copy of the weights that is updated in memory.

Written for the V1 engine of the versions in `checks.py`. Tried on vLLM's CPU build (0.32), where it runs with
`sleep: false`; sleeping needs a GPU.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from memfactory.engines.base import Key, Weights
from memfactory.engines.options import VllmEngineConfig
from memfactory.engines.vllm.checks import (
    check_format,
    check_installed,
    check_one_process,
    check_version,
    lora_room,
    prepare_platform,
)
from memfactory.engines.vllm.replies import Conversations
from memfactory.engines.vllm.weight_transfer import PassingPlace, StoredWeights
from memfactory.errors import ConfigError, EngineError
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import compute_dtype, load_architecture, places, resolve_device
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Reply, Sampling

log = logging.getLogger("memfactory")
AS_FITS = -1
"""vLLM's own word for the longest conversation that its cache can hold."""


class VllmEngine:
    """Samples replies from vLLM's own copy of the model.

    `update_weights` syncs that copy and clears the prefix cache; `sleep` frees the GPU's memory until the next
    conversation. Token ids go in and come out, with the log-probabilities of the distribution that was sampled from.
    `rank`: that of the adapter in training; with `adapter: lora` only the adapter is synced.
    Raises ConfigError if vLLM is not installed, too old or does not start, PromptTooLong for a prompt that does
    not fit.
    """

    gives_tokens = True

    def __init__(
        self, model: ModelConfig, chat: ChatFormat, config: VllmEngineConfig, *, rank: int | None = None
    ) -> None:
        check_installed()
        check_one_process()
        # Weights are synced as tensors of this process, so the engine has to run in it. No usage reports.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        import vllm

        check_version(vllm.__version__)
        prepare_platform(model, config)
        self.chat, self.config = chat, config
        path, adapter = places(model)
        check_format(path)
        self._takes_adapters = rank is not None and config.adapter == "lora"
        options = _options(config)
        device = resolve_device(model.device)
        if config.max_model_len is None and device.type == "cuda":
            # The model's own length would have to fit the cache: 36 GiB for 262,144 tokens of Qwen3-4B.
            options["max_model_len"] = AS_FITS
        if rank is not None and config.adapter == "lora":
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_room(rank)}
        give_back_cached_memory()
        try:
            self._llm = vllm.LLM(
                model=path,
                dtype=str(compute_dtype(model, device)).removeprefix("torch."),
                trust_remote_code=model.trust_remote_code,
                load_format="dummy" if model.random_weights else "auto",
                **options,
            )
        except (ValueError, torch.OutOfMemoryError) as error:
            raise ConfigError(f"engine: vLLM does not start: {error}") from error
        self._engine: Any = self._llm.llm_engine
        shape = load_architecture(model).get_text_config()
        context: int = self._engine.model_config.max_model_len
        if options.get("max_model_len") == AS_FITS:
            log.info("engine: vLLM has room for conversations of up to %s tokens", f"{context:,}")
        self._conversations = Conversations(chat, context=context, rows=shape.vocab_size, random=model.random_weights)
        self._pending: dict[str, tuple[Key, tuple[int, ...], Sampling]] = {}
        self._numbers = 0
        self._asleep = False
        self._adapters = 0
        self._adapter: Any = None
        self._place = PassingPlace(config.weights_folder)
        self._folder: TemporaryDirectory[str] | None = None
        # Dummy weights are not those of the model in training.
        self._base_differs = model.random_weights
        if adapter is not None:
            self._load(StoredWeights(model).whole())
            self._base_differs = True

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Add a request to vLLM."""
        import vllm
        from vllm.sampling_params import RequestOutputKind

        prompt = self.chat.prompt_ids(messages)
        parameters = self._conversations.parameters(prompt, sampling)
        self._wake()
        self._numbers += 1
        number = str(self._numbers)
        self._engine.add_request(
            number,
            vllm.TokensPrompt(prompt_token_ids=list(prompt)),
            vllm.SamplingParams(**parameters, output_kind=RequestOutputKind.FINAL_ONLY),
            lora_request=self._adapter,
        )
        self._pending[number] = (key, prompt, sampling)

    def step(self) -> list[tuple[Key, Reply]]:
        """Run one step of vLLM and return the finished replies."""
        if not self._pending:
            return []
        finished = []
        for output in self._engine.step():
            if output.finished and output.request_id in self._pending:
                key, prompt, sampling = self._pending.pop(output.request_id)
                finished.append((key, self._reply(prompt, sampling, output.outputs[0])))
        return finished

    def check(self, messages: Sequence[Message]) -> None:
        self._conversations.check(self.chat.prompt_ids(messages))

    def pending(self) -> int:
        return len(self._pending)

    def cancel(self) -> None:
        if self._pending:
            self._engine.abort_request(list(self._pending))
        self._pending.clear()

    def close(self) -> None:
        """Shut vLLM down."""
        self.cancel()
        self._forget_adapter()
        self._engine.engine_core.shutdown()

    def update_weights(self, weights: Weights) -> None:
        """Take the policy's weights and clear the prefix cache; nothing may be pending."""
        if self._pending:
            raise ValueError(
                f"{len(self._pending)} conversations are pending at the engine that is to take new weights"
            )
        self._wake()
        if self._takes_adapters and weights.has_adapter:
            if self._base_differs:
                self._load(weights.base())
                self._base_differs = False
            self._load_adapter(weights)
        else:
            self._load(weights.whole())
            self._base_differs = True
        if self._llm.reset_prefix_cache() is False:
            raise EngineError("vLLM did not clear the prefix cache of the former weights")

    def sleep(self) -> None:
        """Give the GPU's memory back until the next conversation or the next weights; nothing may be pending."""
        if self._pending:
            raise ValueError(f"{len(self._pending)} conversations are pending at the engine that is to sleep")
        if self.config.sleep and not self._asleep:
            # Level 1 keeps the weights in the host's memory: the base stays under a new adapter, and an evaluation can
            # follow where training changed nothing. Level 2 would forget them.
            self._llm.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            give_back_cached_memory()
            self._llm.wake_up()
            self._asleep = False

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take a whole model's weights, by the names of the Hugging Face model's parameters."""
        self._forget_adapter()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})

    def _load_adapter(self, weights: Weights) -> None:
        """Take an adapter on top of the base, under a number that no adapter had before."""
        from vllm.lora.request import LoRARequest

        self._forget_adapter()
        # vLLM reads adapters only from files, and may read one again. They lie in memory if the system allows it.
        self._folder = self._place.written(weights.write_adapter)
        self._adapters += 1
        adapter = LoRARequest(f"adapter-{self._adapters}", self._adapters, self._folder.name)
        try:
            self._engine.add_lora(adapter)
        except ValueError as error:
            raise EngineError(f"vLLM refuses the adapter: {error}; write engine.adapter: merged") from error
        self._adapter = adapter

    def _forget_adapter(self) -> None:
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _reply(self, prompt: tuple[int, ...], sampling: Sampling, output: Any) -> Reply:
        reply_ids = tuple(output.token_ids)
        logprobs = [entry[token].logprob for token, entry in zip(reply_ids, output.logprobs, strict=True)]
        return self._conversations.reply(prompt, sampling, reply_ids, logprobs, output.finish_reason)


def give_back_cached_memory() -> None:
    """Return the GPU memory that torch keeps for later tensors: vLLM maps its own beside it, and older versions do
    not ask torch for it first."""
    gc.collect()
    torch.cuda.empty_cache()


def _options(config: VllmEngineConfig) -> dict[str, Any]:
    """The arguments of vLLM beside the model."""
    options = {
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "enable_prefix_caching": config.prefix_caching,
        "enforce_eager": config.enforce_eager,
        "enable_sleep_mode": config.sleep,
        "seed": 0,
    }
    return {name: value for name, value in options.items() if value is not None}

"""The options of the engines, as data. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from memfactory.model.options import ModelConfig, switched
from memfactory.registry import Options
from memfactory.types import Scalar


class Sampled(Options):
    """Options of every engine: the sampling parameters of frozen modules and judges that use it."""

    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of frozen modules and judges; the policy's is set under `train`, `eval` and by `infer`."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling of frozen modules and judges."""

    def without_effect(self) -> Mapping[str, str]:
        return {"top_p": "temperature is 0"} if self.temperature == 0 else {}


class HfOptions(Sampled):
    """Options of the engine `hf` that do not name a model."""

    kind: str
    """The kind of the engine."""
    max_batch: int = Field(64, ge=1)
    """Conversations that decode at one time."""
    max_batch_tokens: int = Field(262144, ge=1)
    """Tokens in the key-value cache at one time, cached prefixes included."""
    prefill_tokens: int = Field(16384, ge=1)
    """Prompt tokens in one prefill pass."""
    share_prefixes: bool = True
    """Compute and store shared prefixes of prompts once; false: only equal prompts are computed once, and copied."""
    packed_weights_gib: float = Field(1.0, ge=0)
    """On a CPU: GiB of float32 weights to copy into a layout that decodes faster while sampling; 0: none."""
    weight_copy: bool = True
    """On a GPU: sample float32 weights and adapters from a copy in the compute type, adapters merged; false: from the
    weights themselves, which takes less memory and more time."""


class HfEngineConfig(HfOptions):
    """The policy's own weights, or a frozen model's, through transformers, with continuous refilling."""

    kind: Literal["hf"] = "hf"
    """The kind of the engine."""
    model: ModelConfig | None = None
    """A frozen model of the engine's own; null: the policy's weights."""

    @property
    def packed_limit(self) -> int:
        """`packed_weights_gib` in bytes."""
        return round(self.packed_weights_gib * 2**30)


class VllmOptions(Sampled):
    """Options of vLLM in this process."""

    kind: str
    """The kind of the engine."""
    gpu_memory_utilization: float = Field(0.4, gt=0, lt=1)
    """Fraction of the GPU's memory for vLLM."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt plus reply; null: as long as the cache has room for, at most the model's own. vLLM starts only if
    its cache holds one conversation of this length."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Conversations that decode at one time; null: vLLM's own choice."""
    max_num_batched_tokens: int | None = Field(None, ge=1)
    """Tokens that go through the model in one pass; null: vLLM's own choice."""
    prefix_caching: bool = True
    """Compute shared prefixes once. Every weight update empties the prefix cache."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    sleep: bool = True
    """Free the GPU's memory while the policy trains."""
    adapter: Literal["lora", "merged"] = "lora"
    """The weights to sync for a LoRA adapter in training: the adapter alone (lora), or the whole merged model
    (merged)."""
    weights_folder: str | None = None
    """Folder for adapters, which vLLM reads from files; null: memory (/dev/shm) if it has room, or the system's
    temporary folder."""


class VllmEngineConfig(VllmOptions):
    """vLLM in this process, on the same GPU (extra `vllm`)."""

    kind: Literal["vllm"] = "vllm"
    """The kind of the engine."""


class AutoEngineConfig(HfOptions, VllmOptions):
    """`vllm` if it is installed, there is a CUDA GPU and vLLM can serve the model; `hf` otherwise."""

    kind: Literal["auto"] = "auto"
    """The kind of the engine."""

    def hf(self) -> HfEngineConfig:
        """The engine `hf` with these options."""
        return HfEngineConfig(**self.model_dump(include=HfOptions.model_fields.keys() - {"kind"}))

    def vllm(self) -> VllmEngineConfig:
        """The engine `vllm` with these options."""
        return VllmEngineConfig(**self.model_dump(include=VllmOptions.model_fields.keys() - {"kind"}))


class VllmServerConfig(Sampled):
    """A vLLM server on a GPU of its own, started beside the run; see docs/vllm.md for its command."""

    kind: Literal["vllm_server"] = "vllm_server"
    """The kind of the engine."""
    url: str | tuple[str, ...] = "http://127.0.0.1:8000"
    """The server's address, on this machine; or a list of several servers' addresses. Each request goes to the server
    with the fewest open ones."""
    adapter: Literal["lora", "merged"] = "lora"
    """The weights to sync for a LoRA adapter in training: the adapter alone (lora), or the whole merged model
    (merged)."""
    concurrency: int = Field(256, ge=1)
    """Requests in flight at one time, for each server."""
    timeout: float = Field(600.0, gt=0)
    """Timeout of a request in seconds."""
    retries: int = Field(4, ge=0)
    """Retries after 429, 5xx, a timeout or a broken connection, with exponential backoff and jitter."""
    backoff: float = Field(1.0, gt=0)
    """Seconds before the first retry; doubled each time."""
    startup_timeout: float = Field(300.0, ge=0)
    """Seconds to wait for a server that is still starting."""
    update_timeout: float = Field(600.0, gt=0)
    """Seconds that the server may take to load new weights."""
    weights_folder: str | None = None
    """Folder for weight transfer that the server can read; null: memory (/dev/shm) if it has room, or the system's
    temporary folder."""
    api_key_env: str | None = None
    """The environment variable that holds the server's key; null: it has none."""

    @field_validator("url")
    @classmethod
    def _each_server_once(cls, url: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not url:
            raise ValueError("no address is given; write the address of a server")
        twice = [] if isinstance(url, str) else [address for address in url if url.count(address) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice; each server is named once")
        return url

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of all servers."""
        return (self.url,) if isinstance(self.url, str) else self.url


class OpenAIEngineConfig(Sampled):
    """Any OpenAI-compatible chat endpoint. The key is named by environment variable and never written."""

    kind: Literal["openai"] = "openai"
    """The kind of the engine."""
    model: str
    """The model's name at the endpoint."""
    base_url: str | None = None
    """The endpoint, such as http://localhost:8000/v1; null: OPENAI_BASE_URL or OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; null or empty: the endpoint needs none."""
    concurrency: int = Field(16, ge=1)
    """Requests in flight at one time."""
    timeout: float = Field(60.0, gt=0)
    """Timeout of a request in seconds, from the first connection to the last byte of the answer."""
    retries: int = Field(4, ge=0)
    """Retries after 429, 5xx, a timeout or a broken connection, with exponential backoff and jitter."""
    backoff: float = Field(1.0, gt=0)
    """Seconds before the first retry; doubled each time."""
    max_retry_wait: float = Field(20.0, ge=0)
    """Longest pause before a retry in seconds, also if the server asks for more with Retry-After."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's field for the longest reply."""
    send_seed: bool = True
    """Send each reply's seed; false for an endpoint that knows no such field."""
    stream: bool = False
    """Request each reply as a stream, for models that answer in no other way. A stream is read with or without it."""
    tokenizer: str | None = None
    """Folder or id of the tokenizer that measures chunks if no local model is loaded; null: model.path's."""
    template_options: dict[str, Scalar] = Field(default_factory=dict)
    """Sent as chat_template_kwargs, which vLLM and SGLang servers pass to the chat template: enable_thinking: false."""
    opens_thinking: bool = False
    """The endpoint's chat template opens <think> itself (DeepSeek-R1's) and its replies are not parsed: each begins
    inside thinking."""

    @field_validator("template_options")
    @classmethod
    def _switches_are_true_or_false(cls, options: dict[str, Scalar]) -> dict[str, Scalar]:
        return switched(options)


EngineConfig = Annotated[
    HfEngineConfig | VllmEngineConfig | AutoEngineConfig | VllmServerConfig | OpenAIEngineConfig,
    Field(discriminator="kind"),
]


def same_engine(one: EngineConfig, other: EngineConfig) -> bool:
    """Whether both describe the same engine; each may have its own sampling parameters."""
    sampling = {"temperature", "top_p"}
    return one.model_dump(exclude=sampling) == other.model_dump(exclude=sampling)

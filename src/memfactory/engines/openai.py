"""Any OpenAI-compatible chat endpoint as an engine: bounded concurrency, timeouts, retries, and never a made-up reply.

Its replies carry no token ids, so they cannot be trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memfactory.engines.addresses import checked_address, shown_address
from memfactory.engines.base import Key, Outcome
from memfactory.engines.chat_replies import read_reply
from memfactory.engines.endpoint import MIB, TOO_LONG_CODES, Endpoint, Refused
from memfactory.engines.endpoint_hints import missing_hint, setting_hint
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.engines.pool import REFUSING_STATUS, RequestPool, RetryPolicy, Work
from memfactory.errors import EngineError, PromptTooLong, RequestRefused
from memfactory.redaction import read_key
from memfactory.types import Message, Reply, Sampling

TOO_LONG = re.compile(r"context (?:length|size|window)|prompt is too long", re.IGNORECASE)
"""Servers' words for a prompt beyond the context: OpenAI and vLLM, SGLang, llama.cpp, Anthropic."""


class OpenAIEngine:
    """Chat completions of `config.model`.

    A rate limit, a server error, a timeout, a broken connection and an answer without a reply are tried again with
    exponential backoff and jitter (a Retry-After counts, up to `max_retry_wait`); any other refusal fails at once, with
    the server's words. A request that has failed for good comes from `step` as its EngineError. Raises ConfigError
    if the key's environment variable is not set or holds no valid key, or the address is invalid.
    """

    gives_tokens = False

    def __init__(self, config: OpenAIEngineConfig) -> None:
        key = read_key(config.api_key_env, f"the endpoint of {config.model!r}")
        address = checked_address(config.base_url, "base_url")
        self.config = config
        self._where = f"{config.model!r} at {shown_address(address)}"
        self._endpoint = Endpoint(address, name=self._where, key=key, timeout=config.timeout, largest=32 * MIB)
        self._retry_policy = RetryPolicy(config.retries, config.backoff, config.max_retry_wait)
        self._pool = RequestPool(config.concurrency, "openai")

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Send a conversation as soon as a connection is free."""
        self._pool.submit(key, self._work(messages, sampling))

    def step(self) -> list[tuple[Key, Outcome]]:
        """Wait for at least one reply and return all that are ready."""
        return self._pool.ready()

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each of `prompts`, or the error in its place, in their order. Pending conversations go on."""
        return self._pool.outcomes([self._work(messages, sampling) for messages, sampling in prompts])

    def pending(self) -> int:
        return self._pool.pending()

    def cancel(self) -> None:
        self._pool.cancel()

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()
        self._endpoint.close()

    def _work(self, messages: Sequence[Message], sampling: Sampling) -> Work:
        """The work of a thread on one conversation: it tries until a reply comes or no retry is left."""
        fields = self._fields(messages, sampling)
        return lambda waiting: waiting.retry(
            lambda: self._reply(fields, sampling.max_tokens), self._retry_policy, self._where
        )

    def _reply(self, fields: dict[str, Any], max_tokens: int) -> Reply:
        """The reply to one try."""
        try:
            answer = self._endpoint.post("/chat/completions", fields)
        except Refused as refusal:
            hint = missing_hint(self._endpoint, self.config.model, refusal) or setting_hint(str(refusal))
            raise _kind(refusal)(f"{refusal}{hint}") from refusal
        reply = read_reply(answer.body, self._where, max_tokens)
        return replace(reply, text=f"<think>\n{reply.text}") if self._begins_inside_thinking(reply) else reply

    def _begins_inside_thinking(self, reply: Reply) -> bool:
        """Whether the reply continues thinking that the endpoint's template opened."""
        return self.config.opens_thinking and not reply.text.lstrip().startswith("<think>")

    def _fields(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        sampling_params = sampling.params
        fields: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": sampling_params.temperature,
            self.config.max_tokens_field: sampling.max_tokens,
        }
        if sampling_params.top_p < 1:
            fields["top_p"] = sampling_params.top_p
        if sampling_params.top_k:
            fields["top_k"] = sampling_params.top_k
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if self.config.template_options:
            fields["chat_template_kwargs"] = dict(self.config.template_options)
        if self.config.stream:
            fields["stream"] = True
        if self.config.send_seed:
            # Endpoints read seeds of 31 bits at least.
            fields["seed"] = sampling.seed % 2**31
        return fields


def _kind(refusal: Refused) -> type[EngineError]:
    """The error for a refusal: of a prompt beyond the context, of this request, or of the engine as a whole."""
    about_request = refusal.status in REFUSING_STATUS or refusal.status == 200
    if refusal.code in TOO_LONG_CODES or (about_request and TOO_LONG.search(str(refusal))):
        return PromptTooLong
    return RequestRefused if about_request else EngineError

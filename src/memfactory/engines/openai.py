"""Any OpenAI-compatible chat endpoint as an engine: bounded concurrency, timeouts, retries, and never a made-up reply.

Its replies carry no token ids, so nothing that it says can be trained on.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from memfactory.engines.base import Key, Outcome
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.engines.pool import REFUSING_STATUS, Patience, RequestPool, TryAgain, Work
from memfactory.errors import ConfigError, EngineError, PromptTooLong, RequestRefused
from memfactory.text import writable
from memfactory.types import Message, Reply, Sampling, Stop

RETRIED_STATUS = (408, 409, 429)


class OpenAIEngine:
    """Chat completions of `config.model`.

    A rate limit, a server error, a timeout, a broken connection and an answer without a reply are tried again with
    exponential backoff and jitter (a Retry-After counts, up to a minute); any other refusal fails at once, with the
    server's words. A request that has failed for good comes from `step` as its EngineError.
    Raises ConfigError where the key's environment variable is not set or the address is none.
    """

    gives_tokens = False

    def __init__(self, config: OpenAIEngineConfig) -> None:
        from openai import OpenAI

        key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else "none"
        if not key:
            raise ConfigError(
                f"the endpoint of {config.model!r} needs a key in the environment variable {config.api_key_env}, "
                "which is not set; write api_key_env: null for an endpoint without keys"
            )
        address = config.base_url or os.environ.get("OPENAI_BASE_URL") or None
        if address is not None and not address.startswith(("http://", "https://")):
            raise ConfigError(f"base_url: {address!r} is no address; it begins with http:// or https://")
        self.config = config
        # Our own retries count, so the client has none.
        self._client = OpenAI(api_key=key, base_url=address, timeout=config.timeout, max_retries=0)
        self._where = f"{config.model!r} at {self._client.base_url}"
        self._transport_errors = _transport_errors()
        self._pool = RequestPool(config.concurrency, "openai")

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        self._pool.submit(key, self._work(messages, sampling))

    def step(self) -> list[tuple[Key, Outcome]]:
        return self._pool.ready()

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each of `prompts`, or why there is none, in their order. Leaves what is pending alone."""
        return self._pool.outcomes([self._work(messages, sampling) for messages, sampling in prompts])

    def pending(self) -> int:
        return self._pool.pending()

    def cancel(self) -> None:
        self._pool.cancel()

    def close(self) -> None:
        self._pool.close()
        self._client.close()

    def _work(self, messages: Sequence[Message], sampling: Sampling) -> Work:
        """What a thread does for one conversation: it tries until there is a reply or the tries are used up."""
        asked, patience = tuple(messages), Patience(self.config.retries, self.config.backoff)
        return lambda waiting: waiting.insist(
            lambda: self._reply(self._request(asked, sampling)), patience, self._where
        )

    def _request(self, messages: Sequence[Message], sampling: Sampling) -> bytes:
        """The body of the answer to one try, complete within twice the timeout."""
        import openai

        deadline = time.monotonic() + self.config.timeout
        body = bytearray()
        try:
            completions = self._client.chat.completions.with_streaming_response
            with completions.create(**self._fields(messages, sampling)) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if time.monotonic() > deadline:
                        raise TryAgain(f"the answer was not complete after {self.config.timeout:g} seconds")
        except openai.APITimeoutError as error:
            raise TryAgain(f"no answer within {self.config.timeout:g} seconds") from error
        except openai.APIConnectionError as error:
            raise TryAgain(f"the connection failed ({error.__cause__ or error})") from error
        except openai.APIStatusError as error:
            words = f"HTTP {error.status_code}: {error.message[:500]}"
            exhausted = error.status_code == 429 and error.code == "insufficient_quota"
            if exhausted or (error.status_code < 500 and error.status_code not in RETRIED_STATUS):
                kind = _refusal(error.status_code, error.code, error.message)
                raise kind(f"{self._where} refuses the request with {words}") from error
            raise TryAgain(words, _seconds(error.response.headers.get("retry-after"))) from error
        except self._transport_errors as error:
            raise TryAgain(f"the connection broke off ({type(error).__name__}: {error})") from error
        return bytes(body)

    def _fields(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        decoding = sampling.decoding
        fields: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": decoding.temperature,
            self.config.max_tokens_field: sampling.max_tokens,
        }
        if decoding.top_p < 1:
            fields["top_p"] = decoding.top_p
        if decoding.top_k:
            fields["extra_body"] = {"top_k": decoding.top_k}
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if self.config.send_seed:
            # Endpoints read seeds of 31 bits at least.
            fields["seed"] = sampling.seed % 2**31
        return fields

    def _reply(self, body: bytes) -> Reply:
        """The reply in the body of an answer; TryAgain for a body that has none."""
        shown = body[:200].decode(errors="replace")
        try:
            choice = json.loads(body)["choices"][0]
            content, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise TryAgain(f"the answer is no chat completion: {shown!r}") from error
        if not isinstance(content, str):
            raise TryAgain(f"the answer has no text: {shown!r}")
        if finish == "content_filter":
            raise RequestRefused(f"the content filter of {self._where} cut the reply off")
        stop: Stop = "length" if finish == "length" else "stop"
        return Reply(writable(content), stop)


def _transport_errors() -> tuple[type[Exception], ...]:
    """What reading a body can raise: the errors of the HTTP library below `openai`, which changed its name at 3.0."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).TransportError for name in names)


def _refusal(status: int, code: str | None, words: str) -> type[EngineError]:
    """What a refusal is about: a prompt beyond the context, this one request, or the engine as a whole."""
    if code == "context_length_exceeded" or (status in REFUSING_STATUS and "maximum context length" in words):
        return PromptTooLong
    return RequestRefused if status in REFUSING_STATUS else EngineError


def _seconds(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or as a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None

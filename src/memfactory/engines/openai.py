"""Any OpenAI-compatible chat endpoint as an engine: bounded concurrency, timeouts, retries, and never a made-up reply.

Its replies carry no token ids, so nothing that it says can be trained on.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from queue import Empty, SimpleQueue
from typing import Any

from memfactory.engines.base import Key, Outcome
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.errors import ConfigError, EngineError
from memfactory.text import writable
from memfactory.types import Message, Reply, Sampling, Stop

LONGEST_PAUSE = 60.0
POLL_SECONDS = 0.005
RETRIED_STATUS = (408, 409, 429)

Ended = Outcome | BaseException
"""What a thread hands over; anything but an Outcome is a bug of ours."""


class _Failed(Exception):
    """One try that may go better the next time; `wait`: the seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Job:
    """One conversation on its way. Its outcome goes to `sink` under `key`, unless it is `cancelled`."""

    key: Key
    number: int
    messages: tuple[Message, ...]
    sampling: Sampling
    sink: SimpleQueue[tuple[Key, Ended]]
    cancelled: threading.Event


class OpenAIEngine:
    """Chat completions of `config.model`.

    A rate limit, a server error, a timeout, a broken connection and an answer without a reply are tried again with
    exponential backoff and jitter (a Retry-After counts, up to a minute); any other refusal fails at once, with the
    server's words. A request that has failed for good comes from `step` as its EngineError. Threads are daemons: an
    interrupted run never waits for an endpoint.
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
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._numbers = 0
        self._forget()

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        self._pending += 1
        self._start(key, messages, sampling, self._finished, self._cancelled)

    def step(self) -> list[tuple[Key, Outcome]]:
        ready: list[tuple[Key, Outcome]] = []
        wait = POLL_SECONDS
        while self._pending:
            try:
                key, outcome = self._finished.get(timeout=wait)
            except Empty:
                break
            wait = 0.0
            self._pending -= 1
            ready.append((key, _known(outcome)))
        return sorted(ready, key=lambda pair: isinstance(pair[1], EngineError))

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each of `prompts`, or why there is none, in their order. Leaves what is pending alone."""
        sink: SimpleQueue[tuple[Key, Ended]] = SimpleQueue()
        cancelled = threading.Event()
        for index, (messages, sampling) in enumerate(prompts):
            self._start(index, messages, sampling, sink, cancelled)
        outcomes: dict[Key, Outcome] = {}
        try:
            while len(outcomes) < len(prompts):
                key, outcome = sink.get()
                outcomes[key] = _known(outcome)
        finally:
            cancelled.set()
        return [outcomes[index] for index in range(len(prompts))]

    def pending(self) -> int:
        return self._pending

    def cancel(self) -> None:
        self._cancelled.set()
        self._forget()

    def close(self) -> None:
        self.cancel()
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0
        self._client.close()

    def _forget(self) -> None:
        self._pending = 0
        self._finished: SimpleQueue[tuple[Key, Ended]] = SimpleQueue()
        self._cancelled = threading.Event()

    def _start(
        self,
        key: Key,
        messages: Sequence[Message],
        sampling: Sampling,
        sink: SimpleQueue[tuple[Key, Ended]],
        cancelled: threading.Event,
    ) -> None:
        self._numbers += 1
        self._jobs.put(_Job(key, self._numbers, tuple(messages), sampling, sink, cancelled))
        if self._threads < self.config.concurrency:
            self._threads += 1
            threading.Thread(target=self._work, name=f"openai-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.cancelled.is_set():
                continue
            outcome: Ended
            try:
                outcome = self._answer(job)
            except BaseException as error:  # noqa: BLE001 - handed over to the thread that asked, which raises it
                outcome = error
            job.sink.put((job.key, outcome))

    def _answer(self, job: _Job) -> Reply:
        """Try until there is a reply or the tries are used up."""
        pauses = random.Random(job.number)
        tries = self.config.retries + 1
        for attempt in range(tries):
            try:
                return self._reply(self._request(job.messages, job.sampling))
            except _Failed as failure:
                reason = failure
            pause = self.config.backoff * 2**attempt * pauses.uniform(0.5, 1.5)
            pause = min(max(pause, reason.wait or 0.0), LONGEST_PAUSE)
            if attempt + 1 < tries and job.cancelled.wait(pause):
                break
        raise EngineError(f"{self._where} gave no reply in {tries} {'tries' if tries > 1 else 'try'}: {reason}")

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
                        raise _Failed(f"the answer was not complete after {self.config.timeout:g} seconds")
        except openai.APITimeoutError as error:
            raise _Failed(f"no answer within {self.config.timeout:g} seconds") from error
        except openai.APIConnectionError as error:
            raise _Failed(f"the connection failed ({error.__cause__ or error})") from error
        except openai.APIStatusError as error:
            words = f"HTTP {error.status_code}: {error.message[:500]}"
            exhausted = error.status_code == 429 and error.code == "insufficient_quota"
            if exhausted or (error.status_code < 500 and error.status_code not in RETRIED_STATUS):
                raise EngineError(f"{self._where} refuses the request with {words}") from error
            raise _Failed(words, _seconds(error.response.headers.get("retry-after"))) from error
        except self._transport_errors as error:
            raise _Failed(f"the connection broke off ({type(error).__name__}: {error})") from error
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
        """The reply in the body of an answer; _Failed for a body that has none."""
        shown = body[:200].decode(errors="replace")
        try:
            choice = json.loads(body)["choices"][0]
            content, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _Failed(f"the answer is no chat completion: {shown!r}") from error
        if not isinstance(content, str):
            raise _Failed(f"the answer has no text: {shown!r}")
        if finish == "content_filter":
            raise EngineError(f"the content filter of {self._where} cut the reply off")
        stop: Stop = "length" if finish == "length" else "stop"
        return Reply(writable(content), stop)


def _known(outcome: Ended) -> Outcome:
    """`outcome` if it is one; a bug of ours that ended the thread's work is raised where it was asked."""
    if not isinstance(outcome, Reply | EngineError):
        raise outcome
    return outcome


def _transport_errors() -> tuple[type[Exception], ...]:
    """What reading a body can raise: the errors of the HTTP library below `openai`, which changed its name at 3.0."""
    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).TransportError for name in names)


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

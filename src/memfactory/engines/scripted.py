"""An engine whose replies come from a function: the public double for tests and dry runs. No model, no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memfactory.engines.base import Key, Outcome
from memfactory.errors import EngineError
from memfactory.types import Message, Reply, Sampling, Tokens

Script = Callable[[Sequence[Message], Sampling], str | Reply]
END = 256


class ScriptedEngine:
    """Answers each conversation with `reply(messages, sampling)`; a plain string is a reply that stopped by itself.

    With `tokens` a string reply also gets made-up ids: the UTF-8 bytes of prompt and reply (one id a byte), the end
    token 256, and a log-probability of -1 per token. `delay(messages, sampling)` says after how many further calls of
    `step` the reply is ready (default: at the next). An EngineError that `reply` raises takes the reply's place;
    anything else is raised from `step`. `requests` lists all conversations in the order of submission.
    """

    def __init__(
        self,
        reply: Script,
        *,
        tokens: bool = True,
        delay: Callable[[Sequence[Message], Sampling], int] | None = None,
    ) -> None:
        self.gives_tokens = tokens
        self.requests: list[tuple[tuple[Message, ...], Sampling]] = []
        self._reply = reply
        self._delay = delay
        self._waiting: list[tuple[int, Key, tuple[Message, ...], Sampling]] = []
        self._steps = 0

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Record the conversation and schedule its reply."""
        conversation = tuple(messages)
        self.requests.append((conversation, sampling))
        ready = self._steps + 1 + (self._delay(conversation, sampling) if self._delay else 0)
        self._waiting.append((ready, key, conversation, sampling))

    def step(self) -> list[tuple[Key, Outcome]]:
        """Return the replies whose delay is over."""
        self._steps += 1
        ready = [entry for entry in self._waiting if entry[0] <= self._steps]
        self._waiting = [entry for entry in self._waiting if entry[0] > self._steps]
        return [(key, self._answer(messages, sampling)) for _, key, messages, sampling in ready]

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each of `prompts`, or the EngineError that `reply` raised instead of one."""
        conversations = [(tuple(messages), sampling) for messages, sampling in prompts]
        self.requests += conversations
        return [self._answer(messages, sampling) for messages, sampling in conversations]

    def pending(self) -> int:
        return len(self._waiting)

    def cancel(self) -> None:
        self._waiting.clear()

    def close(self) -> None:
        """Nothing to release."""
        self.cancel()

    def _answer(self, messages: tuple[Message, ...], sampling: Sampling) -> Outcome:
        try:
            reply = self._reply(messages, sampling)
        except EngineError as error:
            return error
        if isinstance(reply, Reply):
            return reply
        return Reply(reply, "stop", fake_tokens(messages, reply) if self.gives_tokens else None)


def fake_tokens(messages: Sequence[Message], reply: str) -> Tokens:
    """Made-up ids: one id a UTF-8 byte, the end token last, each sampled with log-probability -1."""
    prompt = "".join(f"{message.role}\n{message.content}\n" for message in messages).encode()
    reply_ids = (*reply.encode(), END)
    return Tokens(tuple(prompt), reply_ids, (-1.0,) * len(reply_ids))

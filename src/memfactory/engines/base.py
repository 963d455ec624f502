"""The engine protocol: submit conversations, take the replies that are ready. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from memfactory.errors import EngineError, RequestRefused
from memfactory.types import Message, Reply, Sampling

Key = Hashable
Outcome = Reply | EngineError
"""The outcome of a conversation: its reply, or the error in its place."""


class Engine(Protocol):
    """Anything that answers conversations.

    `submit` never blocks on the reply. `step` advances the work and returns the replies that are ready, each with
    its key; the list may be empty while work is under way, and is empty at once without pending
    work. A conversation that failed for good, after the engine's own retries, is returned with its
    `EngineError` in place of a reply, after the replies; the others go on. An engine that cannot go on at all raises
    one. A RequestRefused, which `submit` may raise too, is about that conversation alone. `gives_tokens` says whether
    replies carry ids and log-probabilities (an API's do not).
    """

    gives_tokens: bool

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Submit a request; `step` returns its reply under `key`."""

    def step(self) -> Sequence[tuple[Key, Outcome]]:
        """Advance generation and return the (key, reply) pairs that are ready."""

    def pending(self) -> int:
        """The number of submitted conversations without a returned outcome."""
        ...

    def cancel(self) -> None:
        """Forget all pending conversations (the run was interrupted)."""
        ...

    def close(self) -> None:
        """Release the engine's resources."""


class Weights(Protocol):
    """The policy's weights as they are now, for engines with a copy of their own; each names them as the model does.

    `version` changes with the weights.
    """

    @property
    def version(self) -> int:
        """The version of the weights, which counts updates."""

    @property
    def has_adapter(self) -> bool:
        """Whether only an adapter is trained."""
        ...

    def whole(self) -> Iterator[tuple[str, Any]]:
        """All of the model's weights, with the adapter, if any, merged in."""
        ...

    def base(self) -> Iterator[tuple[str, Any]]:
        """All of the model's weights below the adapter."""
        ...

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter alone, as PEFT's files."""
        ...


@runtime_checkable
class WeightHolder(Protocol):
    """An engine with its own copy of the policy's weights, which a trainer syncs after each of its updates."""

    def update_weights(self, weights: Weights) -> None:
        """Take the policy's weights as they are now; nothing may be pending."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back until the next conversation or the next weights; nothing may be pending."""
        ...


@runtime_checkable
class SharedHolder(WeightHolder, Protocol):
    """A WeightHolder outside of the run's processes, which all of them use: the first syncs weights, the others
    follow."""

    def synced(self) -> Any:
        """A description of the last sync that can be sent to the other processes."""
        ...

    def follow(self, synced: Any) -> None:
        """Use the weights of another process's last sync from here on; nothing may be pending."""
        ...


@runtime_checkable
class BoundedEngine(Protocol):
    """An engine that knows the context length of its model before the first request."""

    def check(self, messages: Sequence[Message]) -> None:
        """Raise PromptTooLong for a conversation that leaves no room for a reply."""
        ...


@runtime_checkable
class TolerantEngine(Protocol):
    """An engine that can sample while other conversations are pending, such as a judge's."""

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each conversation, or the error of a request that failed."""


def sample(engine: Engine, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Reply]:
    """The replies to `prompts`, in their order. Raises the first EngineError that stands in place of one."""
    replies: list[Reply] = []
    for outcome in sample_or_errors(engine, prompts):
        if isinstance(outcome, EngineError):
            raise outcome
        replies.append(outcome)
    return replies


def sample_or_errors(engine: Engine, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
    """The reply to each of `prompts`, or the error that stands in its place, in their order.

    If the engine fails as a whole, all prompts without a reply get its error. Raises ValueError if other conversations
    are pending, unless the engine is tolerant.
    """
    if isinstance(engine, TolerantEngine):
        return engine.try_sample(prompts)
    if engine.pending():
        raise ValueError(f"{engine.pending()} conversations are pending at the engine, whose replies would be lost")
    outcomes: dict[Key, Outcome] = {}
    try:
        for index, (messages, sampling) in enumerate(prompts):
            try:
                engine.submit(index, messages, sampling)
            except RequestRefused as refusal:
                outcomes[index] = refusal
        while len(outcomes) < len(prompts):
            outcomes.update(engine.step())
    except EngineError as error:
        engine.cancel()
        return [outcomes.get(index, error) for index in range(len(prompts))]
    except BaseException:
        engine.cancel()
        raise
    return [outcomes[index] for index in range(len(prompts))]


def stop_place(text: str, stop: Sequence[str]) -> int | None:
    """The place in `text` at which the first of the `stop` strings begins; None without one."""
    return min((place for string in stop if (place := text.find(string)) >= 0), default=None)

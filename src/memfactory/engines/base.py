"""The engine protocol: submit conversations, take whichever replies are ready. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from memfactory.errors import EngineError
from memfactory.types import Message, Reply, Sampling

Key = Hashable


class Engine(Protocol):
    """Anything that answers conversations.

    `submit` never blocks on the reply. `step` advances the work and returns the replies that have become ready,
    each with the key it was submitted under; it may return an empty list while work is under way, and returns an
    empty list at once when nothing is. A failure that outlasts the engine's own retries raises `EngineError` from
    `step`. `gives_tokens` says whether replies carry ids and log-probabilities (an API's do not).
    """

    gives_tokens: bool

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None: ...

    def step(self) -> list[tuple[Key, Reply]]: ...

    def pending(self) -> int:
        """How many submitted conversations have not been returned yet."""
        ...

    def cancel(self) -> None:
        """Forget all that is pending (the run was interrupted)."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class WeightHolder(Protocol):
    """An engine with its own copy of the policy's weights, which a trainer hands over after each of its updates."""

    def update_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Take the whole model's weights, by the names of the model's own parameters."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back until the next conversation or the next weights; nothing may be pending."""
        ...


@runtime_checkable
class TolerantEngine(Protocol):
    """An engine that tells of each conversation whether it failed, such as a judge's endpoint."""

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Reply | EngineError]: ...


def sample(engine: Engine, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Reply]:
    """The replies to `prompts`, in their order. Nothing else may be pending at `engine`."""
    replies: dict[Key, Reply] = {}
    _collect(engine, prompts, replies)
    return [replies[index] for index in range(len(prompts))]


def sample_or_errors(
    engine: Engine, prompts: Sequence[tuple[Sequence[Message], Sampling]]
) -> list[Reply | EngineError]:
    """The reply to each of `prompts`, or the error that stands in its place, in their order.

    An engine that cannot tell which conversation failed loses all that had no reply yet.
    """
    if isinstance(engine, TolerantEngine):
        return engine.try_sample(prompts)
    replies: dict[Key, Reply] = {}
    try:
        _collect(engine, prompts, replies)
    except EngineError as error:
        return [replies.get(index, error) for index in range(len(prompts))]
    return [replies[index] for index in range(len(prompts))]


def _collect(engine: Engine, prompts: Sequence[tuple[Sequence[Message], Sampling]], replies: dict[Key, Reply]) -> None:
    """Ask all of `prompts` under their numbers and gather the replies; a failure leaves nothing pending."""
    if engine.pending():
        raise ValueError(f"{engine.pending()} conversations are pending at the engine, whose replies would be lost")
    try:
        for index, (messages, sampling) in enumerate(prompts):
            engine.submit(index, messages, sampling)
        while len(replies) < len(prompts):
            replies.update(engine.step())
    except BaseException:
        engine.cancel()
        raise


def stop_place(text: str, stop: Sequence[str]) -> int | None:
    """Where in `text` the first of the `stop` strings begins; None when it holds none."""
    return min((place for string in stop if (place := text.find(string)) >= 0), default=None)

"""The engine protocol: submit conversations, take whichever replies are ready. No torch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

from memfactory.types import Message, Reply, Sampling

Key = Hashable
E_co = TypeVar("E_co", covariant=True)


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


def sample(engine: Engine, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Reply]:
    """The replies to `prompts`, in their order."""
    for index, (messages, sampling) in enumerate(prompts):
        engine.submit(index, messages, sampling)
    replies: dict[Key, Reply] = {}
    while len(replies) < len(prompts):
        replies.update(engine.step())
    return [replies[index] for index in range(len(prompts))]

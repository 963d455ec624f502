"""An engine with fixed weights that samples each distinct greedy conversation once for all episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memfactory.engines.base import Engine, Key, Outcome
from memfactory.engines.replies import ReplyStore, name_of
from memfactory.errors import EngineError, RequestRefused
from memfactory.types import Message, Reply, Sampling


@dataclass(frozen=True)
class _Greedy:
    """A conversation whose reply does not depend on a seed, by the digest of its request."""

    digest: bytes


@dataclass(frozen=True)
class _Seeded:
    """A conversation with a reply of its own, under its submitter's key."""

    key: Key


class CachedEngine:
    """`engine` with its greedy replies (temperature 0) cached in `replies`, under `name`.

    A conversation that is submitted again while the first is pending shares that one's reply. Failures are not cached.
    The engine's weights must not change.
    """

    def __init__(self, engine: Engine, replies: ReplyStore | None = None, name: str = "") -> None:
        self.gives_tokens = engine.gives_tokens
        self._engine = engine
        self._replies = ReplyStore() if replies is None else replies
        self._name = name
        self._pending: dict[_Greedy, list[Key]] = {}
        self._ready: list[tuple[Key, Outcome]] = []

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Answer from the cache, or submit to the engine."""
        if sampling.params.temperature > 0:
            self._engine.submit(_Seeded(key), messages, sampling)
            return
        request = _Greedy(name_of(self._name, messages, sampling))
        cached = self._replies.get(request.digest)
        if cached is not None:
            self._ready.append((key, cached))
        elif request in self._pending:
            self._pending[request].append(key)
        else:
            self._engine.submit(request, messages, sampling)
            self._pending[request] = [key]

    def step(self) -> list[tuple[Key, Outcome]]:
        """Return cached replies first, then those of the engine."""
        ready, self._ready = self._ready, []
        for request, outcome in self._engine.step():
            if isinstance(request, _Greedy):
                if isinstance(outcome, Reply):
                    self._replies.put(request.digest, outcome)
                ready += [(key, outcome) for key in self._pending.pop(request)]
            elif isinstance(request, _Seeded):
                ready.append((request.key, outcome))
        return ready

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The outcome of each of `prompts`; outcomes of other conversations wait for the next `step`.

        Raises EngineError if the engine fails as a whole while other conversations are pending.
        """
        alone, caller = not self.pending(), object()
        outcomes: dict[int, Outcome] = {}
        others: list[tuple[Key, Outcome]] = []
        try:
            for index, (messages, sampling) in enumerate(prompts):
                try:
                    self.submit((caller, index), messages, sampling)
                except RequestRefused as refusal:
                    outcomes[index] = refusal
            while len(outcomes) < len(prompts):
                for key, outcome in self.step():
                    if isinstance(key, tuple) and key[0] is caller:
                        outcomes[key[1]] = outcome
                    else:
                        others.append((key, outcome))
        except EngineError as error:
            self.cancel()
            if not alone:
                raise
            return [outcomes.get(index, error) for index in range(len(prompts))]
        except BaseException:
            self.cancel()
            raise
        self._ready += others
        return [outcomes[index] for index in range(len(prompts))]

    def pending(self) -> int:
        waiting = sum(map(len, self._pending.values())) - len(self._pending)
        return self._engine.pending() + waiting + len(self._ready)

    def cancel(self) -> None:
        self._engine.cancel()
        self._pending.clear()
        self._ready.clear()

    def close(self) -> None:
        """Close the engine."""
        self.cancel()
        self._engine.close()

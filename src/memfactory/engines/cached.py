"""An engine whose weights stay, asked once for each different greedy conversation, however many episodes need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memfactory.engines.base import Engine, Key, Outcome
from memfactory.engines.replies import ReplyStore, name_of
from memfactory.errors import EngineError, RequestRefused
from memfactory.types import Message, Reply, Sampling


@dataclass(frozen=True)
class _Greedy:
    """A conversation whose reply does not depend on a seed, by the digest of what is asked."""

    asked: bytes


@dataclass(frozen=True)
class _Drawn:
    """A conversation that has a reply of its own, under its asker's key."""

    key: Key


class CachedEngine:
    """`engine`, whose greedy replies (temperature 0) are kept in `replies`; there `name` tells it from other engines.

    A conversation that is asked again while the first is under way waits for that one's reply. Failures are not kept.
    It is not for an engine whose weights change.
    """

    def __init__(self, engine: Engine, replies: ReplyStore | None = None, name: str = "") -> None:
        self.gives_tokens = engine.gives_tokens
        self._engine = engine
        self._replies = ReplyStore() if replies is None else replies
        self._name = name
        self._asking: dict[_Greedy, list[Key]] = {}
        self._ready: list[tuple[Key, Outcome]] = []

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        if sampling.params.temperature > 0:
            self._engine.submit(_Drawn(key), messages, sampling)
            return
        asked = _Greedy(name_of(self._name, messages, sampling))
        kept = self._replies.get(asked.asked)
        if kept is not None:
            self._ready.append((key, kept))
        elif asked in self._asking:
            self._asking[asked].append(key)
        else:
            self._engine.submit(asked, messages, sampling)
            self._asking[asked] = [key]

    def step(self) -> list[tuple[Key, Outcome]]:
        ready, self._ready = self._ready, []
        for asked, outcome in self._engine.step():
            if isinstance(asked, _Drawn):
                ready.append((asked.key, outcome))
                continue
            assert isinstance(asked, _Greedy)
            if isinstance(outcome, Reply):
                self._replies.put(asked.asked, outcome)
            ready += [(key, outcome) for key in self._asking.pop(asked)]
        return ready

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each of `prompts`, or why there is none; what becomes ready for others waits for `step`.

        Raises EngineError where the engine cannot go on and others wait for it too.
        """
        alone, asker = not self.pending(), object()
        outcomes: dict[int, Outcome] = {}
        others: list[tuple[Key, Outcome]] = []
        try:
            for index, (messages, sampling) in enumerate(prompts):
                try:
                    self.submit((asker, index), messages, sampling)
                except RequestRefused as refusal:
                    outcomes[index] = refusal
            while len(outcomes) < len(prompts):
                for key, outcome in self.step():
                    if isinstance(key, tuple) and key[0] is asker:
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
        waiting = sum(map(len, self._asking.values())) - len(self._asking)
        return self._engine.pending() + waiting + len(self._ready)

    def cancel(self) -> None:
        self._engine.cancel()
        self._asking.clear()
        self._ready.clear()

    def close(self) -> None:
        self.cancel()
        self._engine.close()

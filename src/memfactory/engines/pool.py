"""Threads that wait for an endpoint, at most so many at a time, and trying again: what engines over HTTP share.

It does not know what is asked, nor how.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from memfactory.engines.base import Key, Outcome
from memfactory.errors import EngineError
from memfactory.types import Reply

T = TypeVar("T")
LONGEST_PAUSE = 20.0
POLL_SECONDS = 0.005
REFUSING_STATUS = (400, 413, 422)
"""HTTP statuses by which a server refuses one request for what it holds; others it may answer."""

Ended = Outcome | BaseException
"""What a thread hands over; anything but an Outcome is a bug of ours."""


class TryAgain(Exception):
    """One try that may go better the next time; `wait`: the seconds that the server asks for.

    `final` is what it becomes once the tries are used up.
    """

    def __init__(self, reason: str, wait: float | None = None, final: type[EngineError] = EngineError) -> None:
        super().__init__(reason)
        self.wait, self.final = wait, final


@dataclass(frozen=True)
class Patience:
    """How often a request is tried: `retries` further times, after `backoff` seconds that double each time.

    No pause is longer than `longest` seconds, whatever a server asks for.
    """

    retries: int
    backoff: float
    longest: float = LONGEST_PAUSE


class Waiting:
    """One conversation on its way. `number` tells it from the others of its pool; `cancelled`: nobody waits for it."""

    def __init__(self, number: int, cancelled: threading.Event) -> None:
        self.cancelled = cancelled
        self._jitter = random.Random(number)

    def insist(self, attempt: Callable[[], T], patience: Patience, where: str) -> T:
        """What `attempt` gives before it has raised TryAgain too often; then EngineError, which names `where`."""
        try:
            return self.repeat(attempt, patience)
        except TryAgain as failure:
            tries = patience.retries + 1
            told = f"{where} gave no reply in {tries} {'tries' if tries > 1 else 'try'}: {failure}"
            raise failure.final(told) from failure

    def repeat(self, attempt: Callable[[], T], patience: Patience) -> T:
        """What `attempt` gives; its last TryAgain where it has raised one too often, or nobody waits any more.

        The pauses grow exponentially, with jitter, to the longest at most; one that a server asks for counts too.
        """
        for number in range(patience.retries):
            try:
                return attempt()
            except TryAgain as failure:
                pause = patience.backoff * 2**number * self._jitter.uniform(0.5, 1.5)
                if self.cancelled.wait(min(max(pause, failure.wait or 0.0), patience.longest)):
                    raise
        return attempt()


Work = Callable[[Waiting], Reply]


@dataclass(frozen=True)
class _Job:
    """`work` for the conversation `key`. Its outcome goes to `sink`, unless it is cancelled."""

    key: Key
    work: Work
    waiting: Waiting
    sink: SimpleQueue[tuple[Key, Ended]]


class RequestPool:
    """Runs work on at most `size` threads and gives its outcomes back in the order in which they come.

    Threads are daemons: an interrupted run never waits for an endpoint.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name = size, name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._numbers = 0
        self._forget()

    def submit(self, key: Key, work: Work) -> None:
        self._pending += 1
        self._start(key, work, self._finished, self._cancelled)

    def ready(self) -> list[tuple[Key, Outcome]]:
        """The outcomes that have come, errors last; waits a moment where there is none yet."""
        found: list[tuple[Key, Outcome]] = []
        wait = POLL_SECONDS
        while self._pending:
            try:
                key, outcome = self._finished.get(timeout=wait)
            except Empty:
                break
            wait = 0.0
            self._pending -= 1
            found.append((key, _known(outcome)))
        return sorted(found, key=lambda pair: isinstance(pair[1], EngineError))

    def outcomes(self, works: Sequence[Work]) -> list[Outcome]:
        """The outcome of each of `works`, in their order. Leaves what is pending alone."""
        sink: SimpleQueue[tuple[Key, Ended]] = SimpleQueue()
        cancelled = threading.Event()
        for index, work in enumerate(works):
            self._start(index, work, sink, cancelled)
        found: dict[Key, Outcome] = {}
        try:
            while len(found) < len(works):
                key, outcome = sink.get()
                found[key] = _known(outcome)
        finally:
            cancelled.set()
        return [found[index] for index in range(len(works))]

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

    def _forget(self) -> None:
        self._pending = 0
        self._finished: SimpleQueue[tuple[Key, Ended]] = SimpleQueue()
        self._cancelled = threading.Event()

    def _start(self, key: Key, work: Work, sink: SimpleQueue[tuple[Key, Ended]], cancelled: threading.Event) -> None:
        self._numbers += 1
        self._jobs.put(_Job(key, work, Waiting(self._numbers, cancelled), sink))
        if self._threads < self.size:
            self._threads += 1
            threading.Thread(target=self._run, name=f"{self.name}-{self._threads}", daemon=True).start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.waiting.cancelled.is_set():
                continue
            outcome: Ended
            try:
                outcome = job.work(job.waiting)
            except BaseException as error:  # noqa: BLE001 - handed over to the thread that asked, which raises it
                outcome = error
            job.sink.put((job.key, outcome))


def _known(outcome: Ended) -> Outcome:
    """`outcome` if it is one; a bug of ours that ended the thread's work is raised where it was asked."""
    if not isinstance(outcome, Reply | EngineError):
        raise outcome
    return outcome

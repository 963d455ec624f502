"""The base of engines over HTTP: a bounded pool of threads that wait for an endpoint, and retries with backoff.

It does not know the requests or their protocol.
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
"""HTTP statuses with which a server refuses one request for its content; it may answer others."""

Ended = Outcome | BaseException
"""The result of a thread; anything but an Outcome is a bug of ours."""


class TryAgain(Exception):
    """A failure that a retry may mend; `wait`: the pause in seconds that the server requests.

    `final` is the error to raise once no retry is left.
    """

    def __init__(self, reason: str, wait: float | None = None, final: type[EngineError] = EngineError) -> None:
        super().__init__(reason)
        self.wait, self.final = wait, final


@dataclass(frozen=True)
class RetryPolicy:
    """Up to `retries` retries of a request, the first after `backoff` seconds, which double each time.

    No pause is longer than `longest` seconds, also if the server requests a longer one.
    """

    retries: int
    backoff: float
    longest: float = LONGEST_PAUSE


class Waiting:
    """One conversation in flight. `number` identifies it in its pool; `cancelled`: nobody waits for it any more."""

    def __init__(self, number: int, cancelled: threading.Event) -> None:
        self.cancelled = cancelled
        self._jitter = random.Random(number)

    def retry(self, request: Callable[[], T], policy: RetryPolicy, where: str) -> T:
        """The result of `request`. Raises an EngineError that names `where` once no retry is left."""
        try:
            return self.repeat(request, policy)
        except TryAgain as failure:
            tries = policy.retries + 1
            message = f"{where} gave no reply in {tries} {'tries' if tries > 1 else 'try'}: {failure}"
            raise failure.final(message) from failure

    def repeat(self, request: Callable[[], T], policy: RetryPolicy) -> T:
        """The result of `request`. Raises its last TryAgain once no retry is left or nobody waits any more.

        The pauses grow exponentially, with jitter, up to the longest; a longer one that the server requests counts too.
        """
        for number in range(policy.retries):
            try:
                return request()
            except TryAgain as failure:
                pause = policy.backoff * 2**number * self._jitter.uniform(0.5, 1.5)
                if self.cancelled.wait(min(max(pause, failure.wait or 0.0), policy.longest)):
                    raise
        return request()


Work = Callable[[Waiting], Reply]


@dataclass(frozen=True)
class _Job:
    """`work` for the conversation `key`. Its outcome goes to `sink`, unless it is cancelled."""

    key: Key
    work: Work
    waiting: Waiting
    sink: SimpleQueue[tuple[Key, Ended]]


class RequestPool:
    """Runs work on at most `size` threads and returns outcomes in the order in which they come.

    Threads are daemons: an interrupted run never waits for an endpoint.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name = size, name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._numbers = 0
        self._forget()

    def submit(self, key: Key, work: Work) -> None:
        """Queue a request under `key`."""
        self._pending += 1
        self._start(key, work, self._finished, self._cancelled)

    def ready(self) -> list[tuple[Key, Outcome]]:
        """The outcomes that have come, errors last; waits a moment for the first."""
        ready: list[tuple[Key, Outcome]] = []
        wait = POLL_SECONDS
        while self._pending:
            try:
                key, outcome = self._finished.get(timeout=wait)
            except Empty:
                break
            wait = 0.0
            self._pending -= 1
            ready.append((key, _checked(outcome)))
        return sorted(ready, key=lambda pair: isinstance(pair[1], EngineError))

    def outcomes(self, works: Sequence[Work]) -> list[Outcome]:
        """The outcome of each of `works`, in their order. Pending work goes on."""
        sink: SimpleQueue[tuple[Key, Ended]] = SimpleQueue()
        cancelled = threading.Event()
        for index, work in enumerate(works):
            self._start(index, work, sink, cancelled)
        outcomes: dict[Key, Outcome] = {}
        try:
            while len(outcomes) < len(works):
                key, outcome = sink.get()
                outcomes[key] = _checked(outcome)
        finally:
            cancelled.set()
        return [outcomes[index] for index in range(len(works))]

    def pending(self) -> int:
        return self._pending

    def cancel(self) -> None:
        self._cancelled.set()
        self._forget()

    def close(self) -> None:
        """Cancel all requests and end the threads."""
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
            except BaseException as error:  # noqa: BLE001 - the thread that waits for it raises it
                outcome = error
            job.sink.put((job.key, outcome))


def _checked(outcome: Ended) -> Outcome:
    """`outcome` if it is one; a bug of ours that ended the thread's work is raised in the waiting thread."""
    if not isinstance(outcome, Reply | EngineError):
        raise outcome
    return outcome

"""Signals that ask a process to stop: Ctrl-C, SIGTERM (a scheduler) and SIGHUP (its terminal is gone)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None]


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C stopped the process; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def handled(handler: Handler, numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Within it `handler` is called for these signals, which only the main thread receives.

    A signal that the parent process made this one ignore (`nohup`) stays ignored. After SIGHUP nothing goes to the
    terminal any more, since every word to it would be an error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [descriptor for descriptor in (0, 1, 2) if _is_terminal(descriptor)]

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave(terminals)
        handler(number, frame)

    caught = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def terminate(number: int, frame: FrameType | None) -> None:
    """Leave at once, through every `finally`."""
    raise Terminated(number)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _leave(terminals: list[int]) -> None:
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

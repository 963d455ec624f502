"""How far an evaluation has come, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memfactory.console import Console
from memfactory.evaluation.episodes import OnProgress

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress_display(console: Console, title: str) -> Iterator[OnProgress]:
    """What to tell of (attempts finished, attempts in all) while attempts are played."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = float("-inf")

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            console.print(f"{title}: {done} of {total} attempts", highlight=False, markup=False, soft_wrap=True)

    yield tell

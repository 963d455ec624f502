"""The progress of an evaluation on stderr: a bar on a terminal, a line every half minute elsewhere."""

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
    """A function that shows (finished episodes, all episodes) under `title`."""
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
    last_line = float("-inf")

    def show(done: int, total: int) -> None:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            console.print(f"{title}: {done} of {total} episodes", highlight=False, markup=False, soft_wrap=True)

    yield show

"""The progress display: live on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from memfactory.console import Console
from memfactory.trackers.base import RunInfo, State, Tracker

RECENT = 10
"""Steps that the time left is judged from."""


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:.4g}"


# Metric, label, how it is written; metrics that a trainer does not give are left out.
SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", _number),
    ("groups/zero_variance", "zero variance", _percent),
    ("groups/unknown", "unknown", _percent),
    ("kl", "KL", _number),
    ("clip", "clipped", _percent),
    ("entropy", "entropy", _number),
    ("reply_tokens", "reply tokens", lambda value: f"{value:.0f}"),
    ("truncated", "truncated", _percent),
    ("unfinished_thinking", "unfinished thinking", _percent),
    ("retriever/useful", "useful memories", _percent),
    ("learning_rate", "learning rate", _number),
    ("grad_norm", "gradient norm", _number),
    ("tokens_per_second", "tokens/s", lambda value: f"{value:,.0f}"),
)


def summary(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """(label, text) for the display: the reward with its parts, then the other metrics that exist."""
    rows = []
    if "reward" in metrics:
        parts = [f"{n.removeprefix('reward/')} {v:.3f}" for n, v in metrics.items() if n.startswith("reward/")]
        rows.append(("reward", f"{metrics['reward']:.3f}" + (f" ({', '.join(parts)})" if parts else "")))
    clips = [metrics[name] for name in ("clip/low", "clip/high") if name in metrics]
    known = {**metrics, **({"clip": sum(clips)} if clips else {})}
    if known.get("groups/unknown") == 0:
        del known["groups/unknown"]
    return rows + [(label, write(known[name])) for name, label, write in SHOWN if name in known]


class ConsoleTracker(Tracker):
    """Shows how a run goes. Away from a terminal, steps that follow within a second share a line: the last one's."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console()
        self._clock = clock
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._shown_at = float("-inf")
        self._total = 0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[status]}", style="dim", markup=False),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._live: Live | None = None

    def start(self, run: RunInfo) -> None:
        self._total = run.total_steps
        opening = f"{run.name}: step {run.step} of {run.total_steps}, results in {run.folder}"
        self._console.print(opening, highlight=False, markup=False, soft_wrap=True)
        if self._console.is_terminal:
            self._task = self._bar.add_task("", total=run.total_steps, completed=run.step, left="", status="")
            self._live = Live(self._bar, console=self._console, refresh_per_second=4)
            self._live.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._seconds.append(metrics.get("seconds", 0.0))
        left = self._time_left(step)
        if self._live is not None and self._task is not None:
            self._bar.update(self._task, completed=step, left=left, status="")
            table = Table.grid(padding=(0, 2))
            for label, text in summary(metrics):
                table.add_row(Text(label, style="dim"), Text(text))
            self._live.update(Group(self._bar, table))
        elif step >= self._total or self._clock() - self._shown_at >= 1:
            self._shown_at = self._clock()
            values = "  ".join(f"{label} {text}" for label, text in summary(metrics))
            self._line(f"step {step}/{self._total}  {values}  {left}".rstrip())

    def _time_left(self, step: int) -> str:
        average = sum(self._seconds) / len(self._seconds)
        if average <= 0 or step >= self._total:
            return ""
        return f"{timedelta(seconds=round(average * (self._total - step)))} left"

    def evaluation(self, step: int, means: Mapping[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self._line(f"evaluation after step {step}: {values}")

    def status(self, text: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, status=text)

    def finish(self, state: State, error: str | None) -> None:
        if self._live is not None:
            self.status("")
            self._live.stop()
            self._live = None

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

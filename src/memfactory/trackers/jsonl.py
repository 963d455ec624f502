"""metrics.jsonl: one JSON object a step, the source of truth about a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from memfactory.files import JsonLinesWriter, json_line, read_json_lines, write_whole
from memfactory.trackers.base import RunInfo, State, Tracker

FILE = "metrics.jsonl"


class JsonlTracker(Tracker):
    """Appends `{"step": N, ...}` and flushes at once. A number that is not finite is written as null."""

    def __init__(self) -> None:
        self._writer: JsonLinesWriter | None = None

    def start(self, run: RunInfo) -> None:
        path = run.folder / FILE
        if path.is_file():
            cut_after(path, run.step)
        self._writer = JsonLinesWriter(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            self._writer.append({"step": step, **finite})

    def finish(self, state: State, error: str | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of later steps: a run that was killed and goes on from `step` takes those steps again."""
    rows = list(read_json_lines(path))
    kept = [row for row in rows if isinstance(row.get("step"), int) and int(str(row["step"])) <= step]
    write_whole(path, "".join(json_line(row) for row in kept))

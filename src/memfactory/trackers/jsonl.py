"""metrics.jsonl: one JSON object per step, the source of truth about a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from memfactory.files.atomic import set_aside, write_text
from memfactory.files.json_lines import JsonLinesWriter, json_line, json_lines_or_problems
from memfactory.trackers.base import RunInfo, State, Tracker

log = logging.getLogger("memfactory")
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
    """Drop the lines of later steps: a run that was killed and goes on from `step` takes those steps again.

    Lines that cannot be read go too, with a warning; the file as it was is kept beside it.
    """
    rows: list[dict[str, object]] = []
    wrong: list[str] = []
    for row in json_lines_or_problems(path):
        wrong.append(row) if isinstance(row, str) else rows.append(row)
    if wrong:
        aside = set_aside(path)
        log.warning("%d lines were left out, the whole file is now %s: %s", len(wrong), aside, wrong[0])
    earlier = [row for row in rows if isinstance(row.get("step"), int) and int(str(row["step"])) <= step]
    write_text(path, "".join(json_line(row) for row in earlier))

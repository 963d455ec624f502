"""What a tracker is: a place that metrics go to. It does not know what the numbers mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["success", "crashed", "aborted"]


@dataclass(frozen=True)
class RunInfo:
    """What trackers know of a run. `step` is the last step that is done already: 0, or where a resumed run goes on."""

    name: str
    folder: Path
    values: Mapping[str, object]
    total_steps: int
    step: int = 0


class Tracker(ABC):
    """One place for metrics. Steps come in ascending order; what a tracker has no use for it lets pass."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Open it. What it holds of steps beyond `run.step` (of a run that was killed) no longer counts."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one optimizer step, all at once."""

    def evaluation(self, step: int, means: Mapping[str, float]) -> None:  # noqa: B027 - of no interest to some
        """The means of an evaluation after `step`, as "dataset/metric"."""

    def status(self, text: str) -> None:  # noqa: B027 - of no interest to some
        """What is going on right now."""

    @abstractmethod
    def finish(self, state: State, error: str | None) -> None:
        """Close it."""

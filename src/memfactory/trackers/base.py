"""The base of trackers: destinations of metrics. It does not know the meaning of the numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["success", "crashed", "aborted"]


@dataclass(frozen=True)
class RunInfo:
    """The description of a run for trackers. `step` is the last finished step: 0, or that of a resumed run."""

    name: str
    folder: Path
    values: Mapping[str, object]
    total_steps: int
    step: int = 0


class Tracker(ABC):
    """One place for metrics. Steps come in ascending order; a tracker ignores data that it has no use for."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Open it. Its records of steps beyond `run.step` (of a killed run) no longer count."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one optimizer step, all at once."""

    def evaluation(self, step: int, means: Mapping[str, float]) -> None:  # noqa: B027 - of no interest to some
        """The means of an evaluation after `step`, as "dataset/metric"."""

    def status(self, text: str) -> None:  # noqa: B027 - of no interest to some
        """The present activity, as a text."""

    @abstractmethod
    def finish(self, state: State, error: str | None) -> None:
        """Close it."""

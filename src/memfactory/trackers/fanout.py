"""`Trackers`: all configured trackers behind one object. A tracker that fails does not stop a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from memfactory.redaction import redacted_message
from memfactory.trackers.base import RunInfo, State, Tracker
from memfactory.trackers.console import ConsoleTracker
from memfactory.trackers.jsonl import JsonlTracker
from memfactory.trackers.options import ConsoleConfig, SwanlabConfig, TrackerConfig
from memfactory.trackers.swanlab import SwanlabTracker

log = logging.getLogger("memfactory")


class Trackers:
    """The trackers of one run, on the main process. metrics.jsonl is always among them.

    `step` is the last completed step: 0 for a new run. A tracker that fails logs a warning, once for each kind of
    failure.
    """

    def __init__(
        self,
        configs: Sequence[TrackerConfig],
        folder: Path,
        values: Mapping[str, object],
        total_steps: int,
        step: int = 0,
    ) -> None:
        self._warned: set[str] = set()
        made = [tracker for tracker in map(make_tracker, configs) if tracker is not None]
        run = RunInfo(folder.name, folder, values, total_steps, step)
        # The console display starts last: the start messages of the others would break it.
        ordered = sorted([JsonlTracker(), *made], key=lambda tracker: isinstance(tracker, ConsoleTracker))
        self._trackers = [tracker for tracker in ordered if self._guard(tracker, partial(tracker.start, run))]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one optimizer step, all at once."""
        for tracker in self._trackers:
            self._guard(tracker, partial(tracker.log, step, metrics))

    def evaluation(self, step: int, means: Mapping[str, float]) -> None:
        """The means of an evaluation after `step`, as "dataset/metric"."""
        for tracker in self._trackers:
            self._guard(tracker, partial(tracker.evaluation, step, means))

    def status(self, text: str) -> None:
        """The present activity, as a text."""
        for tracker in self._trackers:
            self._guard(tracker, partial(tracker.status, text))

    def finish(self, state: State, error: str | None = None) -> None:
        """Close all trackers, in the reverse order of their start."""
        message = None if error is None else redacted_message(error)
        for tracker in reversed(self._trackers):
            self._guard(tracker, partial(tracker.finish, state, message))

    def _guard(self, tracker: Tracker, act: Callable[[], None]) -> bool:
        """Whether `act` succeeded; a failure is logged."""
        try:
            act()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - no failure of a tracker stops a run;
            # rich raises SystemExit once nobody reads its output any more (`| head`).
            text = f"{type(tracker).__name__}: {type(error).__name__}: {error}"
            if text not in self._warned:
                self._warned.add(text)
                log.warning("a tracker failed and the run goes on: %s", text)
            return False
        return True


def make_tracker(config: TrackerConfig) -> Tracker | None:
    """The tracker that `config` describes; None for metrics.jsonl, which is always there."""
    if isinstance(config, SwanlabConfig):
        return SwanlabTracker(config)
    return ConsoleTracker() if isinstance(config, ConsoleConfig) else None

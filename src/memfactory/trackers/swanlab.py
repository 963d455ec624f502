"""SwanLab as a tracker: offline unless the config says otherwise."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from memfactory.files.atomic import write_text
from memfactory.redaction import redacted_tree
from memfactory.trackers.base import RunInfo, State, Tracker
from memfactory.trackers.options import SwanlabConfig

log = logging.getLogger("memfactory")
FOLDER = "swanlab"
ID_FILE = "run_id"
LONGEST_NAME = 512


class SwanlabTracker(Tracker):
    """A SwanLab run with its files in the run folder. It collects metrics and config, nothing else."""

    def __init__(self, config: SwanlabConfig) -> None:
        self._config = config
        self._run: Any = None
        self._mode = ""

    def start(self, run: RunInfo) -> None:
        mode = self._config.mode
        if mode == "disabled":
            return
        if mode == "online" and not os.environ.get("SWANLAB_API_KEY"):
            log.warning("SwanLab: SWANLAB_API_KEY is not set, so the run is logged offline (`swanlab sync` sends it)")
            mode = "offline"
        try:
            self._run = self._open(run, mode)
        except Exception as error:
            if mode != "online":
                raise
            log.warning("SwanLab: no connection (%s), so the run is logged offline", error)
            self._run = self._open(run, "offline")

    def _open(self, run: RunInfo, mode: str) -> Any:
        import swanlab

        self._mode = mode
        folder = run.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with _restored_hooks(), _quiet(mode):
            return swanlab.init(
                mode=mode,
                log_dir=str(folder),
                project=self._config.project,
                workspace=self._config.workspace,
                name=run.name[:LONGEST_NAME],
                id=_run_id(folder / ID_FILE),
                resume="allow",
                config=redacted_tree(run.values),
                settings=swanlab.Settings(
                    interactive=False,
                    terminal={"proxy_type": "none"},
                    probe=dict.fromkeys(("hardware", "runtime", "requirements", "conda", "git", "monitor"), False),
                ),
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    def evaluation(self, step: int, means: Mapping[str, float]) -> None:
        self.log(step, {f"eval/{name}": value for name, value in means.items()})

    def finish(self, state: State, error: str | None) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            with _quiet(self._mode):
                run.finish(state=state, error=error)


def _run_id(path: Path) -> str:
    """The id of the run's experiment, which stays the same when the run is resumed."""
    try:
        known = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        known = ""
    if re.fullmatch(r"[0-9a-z]{16}", known):
        return known
    new = secrets.token_hex(8)
    write_text(path, new + "\n")
    return new


def _quiet(mode: str) -> AbstractContextManager[object]:
    """SwanLab prints to stdout. Only online does it print something of use: the run's address."""
    return nullcontext() if mode == "online" else redirect_stdout(io.StringIO())


@contextmanager
def _restored_hooks() -> Iterator[None]:
    """Restore the hook for uncaught exceptions, which SwanLab's start replaces.

    SWANLAB_PROJECT, which transformers documents, has another meaning in SwanLab 0.10, whose start fails with it.
    """
    hook, project = sys.excepthook, os.environ.pop("SWANLAB_PROJECT", None)
    try:
        yield
    finally:
        sys.excepthook = hook
        if project is not None:
            os.environ["SWANLAB_PROJECT"] = project

"""The options of the trackers, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memfactory.registry import Options


class SwanlabConfig(Options):
    """SwanLab. It cannot stop a run."""

    kind: Literal["swanlab"] = "swanlab"
    """The kind of the tracker."""
    mode: Literal["offline", "local", "online", "disabled"] = "offline"
    """offline: files to `swanlab sync`; local: `swanlab watch` (extra dashboard); online: needs SWANLAB_API_KEY."""
    project: str = Field("memfactory", min_length=1, max_length=100, pattern=r"^[0-9a-zA-Z_\-+.]+$")
    """The project's name: letters, digits and - _ + . only."""
    workspace: str | None = Field(None, min_length=1, max_length=25, pattern=r"^[0-9a-zA-Z_\-]+$")
    """The workspace; null: your own."""


class JsonlConfig(Options):
    """metrics.jsonl in the run folder: one object per step. Always written, listed or not."""

    kind: Literal["jsonl"] = "jsonl"
    """The kind of the tracker."""


class ConsoleConfig(Options):
    """The progress display: live on a terminal, one line per step elsewhere."""

    kind: Literal["console"] = "console"
    """The kind of the tracker."""


TrackerConfig = Annotated[SwanlabConfig | JsonlConfig | ConsoleConfig, Field(discriminator="kind")]

"""Options of online learning. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from memfactory.config.training import LoopOptions, Overlong


class OnlineOptions(LoopOptions):
    """Modules with parameters of their own learn from finished episodes; the language model is not trained."""

    resumable: ClassVar[frozenset[str]] = LoopOptions.resumable | {"transcripts_per_step"}

    batch_size: int = Field(4, ge=1)
    """Tasks of one step; one episode of each is played and learned from."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the policy; 0: greedy. Exploration is up to the modules."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling; 0: off."""
    overlong: Overlong = "unknown"
    """Tasks that do not fit the context. unknown: their episodes are not learned from. drop, error: every task's first
    prompt is measured before training, and tasks that do not fit are left out or stop the run."""
    transcripts_per_step: int = Field(2, ge=0)
    """Episodes of each step whose conversations are written to transcripts/."""
    max_failed_fraction: float = Field(0.2, ge=0, le=1)
    """The run stops if a larger fraction of a step's episodes failed, such as by an engine that is down. Episodes that
    do not fit the context do not count."""

    def without_effect(self) -> Mapping[str, str]:
        return dict.fromkeys(("top_p", "top_k"), "temperature is 0") if self.temperature == 0 else {}

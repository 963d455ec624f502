"""Options of online learning. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from memfactory.config.training import LoopOptions, Overlong


class OnlineOptions(LoopOptions):
    """Modules with parameters of their own learn from attempts as they are made; the language model stays as it is."""

    resumable: ClassVar[frozenset[str]] = LoopOptions.resumable | {"transcripts_per_step"}

    batch_size: int = Field(4, ge=1)
    """Tasks that are attempted, once each, and then learnt from in one step."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the policy; 0: greedy. What is explored is up to the modules."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling; 0: off."""
    overlong: Overlong = "unknown"
    """Tasks whose prompts do not fit the context: their attempts teach nothing (unknown), or those whose first prompt
    does not fit are left out (drop) or refused (error) before training; both measure every task."""
    transcripts_per_step: int = Field(2, ge=0)
    """Attempts whose conversations are written to transcripts/ each step."""
    max_failed_fraction: float = Field(0.2, ge=0, le=1)
    """The run stops when a larger share of a step's attempts could not be played to their end (a helper failed).
    Attempts that do not fit the context do not count."""

    def without_effect(self) -> Mapping[str, str]:
        return dict.fromkeys(("top_p", "top_k"), "temperature is 0") if self.temperature == 0 else {}

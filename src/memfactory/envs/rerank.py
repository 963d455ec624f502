"""The environment `rerank`: what is chosen from a memory bank for a question, and the answer that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from memfactory.envs.memory_bank import MemoryBankEnv, MemoryBankOptions
from memfactory.registry import ENVS
from memfactory.types import Task


class RerankOptions(MemoryBankOptions):
    """Options of `rerank`."""

    rewards: dict[str, float | dict[str, object]] = Field(
        {"evidence_recall": {"weight": 1.0, "k": 5}, "em": 1.0, "memory_format": {"weight": 0.1, "steps": ["rerank"]}},
        min_length=1,
    )
    """Registered rewards by name: a weight, or a mapping of that reward's options, its weight among them."""


@ENVS.register("rerank")
class RerankEnv(MemoryBankEnv[RerankOptions]):
    """A question to a memory bank; what counts is the evidence that is retrieved for it, and the answer.

    Rows without gold evidence need other rewards, such as {em: 1.0} or RMM's `citations`.
    """

    evidence_metrics: ClassVar[tuple[str, ...]] = ("evidence_recall",)

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """What `memory_bank` reports, led by the evidence retrieved where nearly every task has gold evidence."""
        names = super().default_metrics(tasks)
        leading = [name for name in names if name in self.evidence_metrics]
        return (*leading, *(name for name in names if name not in leading))

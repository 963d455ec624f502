"""The environment `rerank`: retrieval from a memory bank for a question, and the answer from it."""

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
    """Rewards by registered name: a weight, or a mapping of the reward's options, including its weight."""


@ENVS.register("rerank")
class RerankEnv(MemoryBankEnv[RerankOptions]):
    """Questions to a memory bank; the retrieved evidence and the answer are scored.

    Rows without gold evidence need other rewards, such as {em: 1.0} or RMM's `citations`.
    """

    evidence_metrics: ClassVar[tuple[str, ...]] = ("evidence_recall",)

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """The metrics of `memory_bank`, led by those of evidence if nearly every task has gold evidence."""
        names = super().default_metrics(tasks)
        leading = [name for name in names if name in self.evidence_metrics]
        return (*leading, *(name for name in names if name not in leading))

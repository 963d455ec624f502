"""The environment `memory_bank`: read a conversation into a memory bank, then answer a question from the bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from typing_extensions import TypeVar

from memfactory.data.base import Dataset, Row
from memfactory.envs.base import Environment, EnvironmentOptions, TaskSet
from memfactory.envs.memory_rows import UNKNOWN_EVIDENCE, MemoryRowReader
from memfactory.registry import ENVS
from memfactory.types import Task

LOCOMO = ("locomo_f1", "mem0_f1", "bleu1", "em")
QUESTIONS = ("em", "f1")
NEARLY_ALL = 0.95


class MemoryBankOptions(EnvironmentOptions):
    """Options of `memory_bank`."""

    rewards: dict[str, float | dict[str, object]] = Field({"em": 1.0, "memory_format": 0.1}, min_length=1)
    """Rewards by registered name: a weight, or a mapping of the reward's options, including its weight."""
    needs_answers: bool = True
    """Rows without gold answers are errors; if false, rewards that need gold answers are unknown for them."""


BankT = TypeVar("BankT", bound=MemoryBankOptions, default=MemoryBankOptions, covariant=True)


@ENVS.register("memory_bank")
class MemoryBankEnv(Environment[BankT]):
    """Questions to a memory bank after a conversation was read into it; the answer is scored.

    The default reward is Memory-R1's (arXiv 2508.19828), exact match of the answer, plus a tenth for form. Form alone
    never wins: perfect form without the right answer earns 0.1, the right answer in the worst form 1, an empty reply 0.
    It only separates episodes of a group that are all right or all wrong.
    """

    evidence_metrics: ClassVar[tuple[str, ...]] = ("evidence_kept",)
    """Metrics that are also reported if nearly every task has gold evidence."""

    def reader(self) -> Callable[[Row], Task]:
        return MemoryRowReader(needs_answers=self.options.needs_answers).task

    def task(self, row: Row) -> Task:
        return self.reader()(row)

    def tasks(self, dataset: Dataset) -> TaskSet:
        taskset = super().tasks(dataset)
        affected = [task for task in taskset.tasks if task.meta.get(UNKNOWN_EVIDENCE)]
        if not affected:
            return taskset
        note = (
            f"{len(affected)} of {len(taskset.tasks)} tasks name evidence that is neither a turn of their conversation "
            f"nor a source of their memory (the first: {affected[0].id}); it is left out, and scores of evidence are "
            "unknown if none is left"
        )
        return replace(taskset, notes=(*taskset.notes, note))

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """LoCoMo's metrics if all tasks have LoCoMo's categories, else those of question answering."""
        locomo = bool(tasks) and all(task.meta.get("kind") == "locomo" and "category" in task.meta for task in tasks)
        known = sum(bool(task.evidence) for task in tasks)
        evidence = self.evidence_metrics if tasks and known >= NEARLY_ALL * len(tasks) else ()
        return (*(LOCOMO if locomo else QUESTIONS), *evidence)

"""The environment `memory_bank`: a conversation is read into a memory bank, and a question is answered from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from typing_extensions import TypeVar

from memfactory.data.base import Dataset, Row
from memfactory.envs.base import Environment, EnvironmentOptions, TaskSet
from memfactory.envs.memory_rows import LOST_EVIDENCE, MemoryRowReader
from memfactory.registry import ENVS
from memfactory.types import Task

LOCOMO = ("locomo_f1", "mem0_f1", "bleu1", "em")
QUESTIONS = ("em", "f1")
NEARLY_ALL = 0.95


class MemoryBankOptions(EnvironmentOptions):
    """Options of `memory_bank`."""

    rewards: dict[str, float | dict[str, object]] = Field({"em": 1.0, "memory_format": 0.1}, min_length=1)
    """Registered rewards by name: a weight, or a mapping of that reward's options, its weight among them."""
    needs_answers: bool = True
    """Whether a row without gold answers is an error; false: rewards that compare with them are unknown there."""


BankT = TypeVar("BankT", bound=MemoryBankOptions, default=MemoryBankOptions, covariant=True)


@ENVS.register("memory_bank")
class MemoryBankEnv(Environment[BankT]):
    """A question to a memory bank, after a conversation was read into it; what counts is the answer.

    The default reward is Memory-R1's (arXiv 2508.19828), the exact match of the answer that is given from what is
    retrieved from the bank, and a tenth for form. Form alone is never the best: a faultless form without the right
    answer earns 0.1, the right answer in the worst form 1, and an empty reply neither. It only says, among attempts
    of which none (or each) is right, which of them could be read.
    """

    evidence_metrics: ClassVar[tuple[str, ...]] = ("evidence_kept",)
    """Reported beside the others where nearly every task has gold evidence."""

    def reader(self) -> Callable[[Row], Task]:
        return MemoryRowReader(needs_answers=self.options.needs_answers).task

    def task(self, row: Row) -> Task:
        return self.reader()(row)

    def tasks(self, dataset: Dataset) -> TaskSet:
        found = super().tasks(dataset)
        lost = [task for task in found.tasks if task.meta.get(LOST_EVIDENCE)]
        if not lost:
            return found
        note = (
            f"{len(lost)} of {len(found.tasks)} tasks name evidence that is no turn of their conversation and no "
            f"source of their memory (the first: {lost[0].id}); it is left out, and scores of evidence are unknown "
            "where none is left"
        )
        return replace(found, notes=(*found.notes, note))

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """LoCoMo's by its own names where all tasks have LoCoMo's categories, else those of question answering."""
        locomo = bool(tasks) and all(task.meta.get("kind") == "locomo" and "category" in task.meta for task in tasks)
        known = sum(bool(task.evidence) for task in tasks)
        evidence = self.evidence_metrics if tasks and known >= NEARLY_ALL * len(tasks) else ()
        return (*(LOCOMO if locomo else QUESTIONS), *evidence)

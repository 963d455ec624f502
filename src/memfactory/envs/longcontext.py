"""The environment `longcontext`: questions about long texts, in MemAgent's and RULER's published forms."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from memfactory.data.base import Row
from memfactory.envs.base import Environment, EnvironmentOptions
from memfactory.envs.question_rows import FieldNames, read_task
from memfactory.registry import ENVS
from memfactory.types import Task

METRICS = {
    "qa": ("sub_em", "f1", "boxed_em", "em"),
    "ruler": ("string_match_all",),
    "ruler_qa": ("string_match_part",),
}


class LongcontextOptions(EnvironmentOptions):
    """Options of `longcontext`."""

    rewards: dict[str, float | dict[str, object]] = Field({"boxed_em": 1.0}, min_length=1)
    """Rewards by registered name: a weight, or a mapping of the reward's options, including its weight."""
    fields: FieldNames = FieldNames()
    """Field names of your own rows, if they differ from the published forms."""


@ENVS.register("longcontext")
class LongcontextEnv(Environment[LongcontextOptions]):
    """Questions about long texts; answers are scored by rule or by a judge."""

    def task(self, row: Row) -> Task:
        return read_task(row, self.options.fields)

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """The metrics that the authors of each kind of rows report, the headline first."""
        kinds = {task.meta.get("kind"): None for task in tasks}
        names = [name for kind, metrics in METRICS.items() if kind in kinds for name in metrics]
        return tuple(names) or super().default_metrics(tasks)

"""The environment `longcontext`: a question over a long text, in any form that MemAgent or RULER publish."""

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
    """Registered rewards by name: a weight, or a mapping of that reward's options, its weight among them."""
    fields: FieldNames = FieldNames()
    """What your own rows call their fields, where they differ from the published forms."""


@ENVS.register("longcontext")
class LongcontextEnv(Environment[LongcontextOptions]):
    """A question over a long text; the answer is scored by rule or by a judge."""

    def task(self, row: Row) -> Task:
        return read_task(row, self.options.fields)

    def default_metrics(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """By the kinds of rows: what the authors of the data report, the headline first."""
        kinds = {task.meta.get("kind"): None for task in tasks}
        names = [name for kind, metrics in METRICS.items() if kind in kinds for name in metrics]
        return tuple(names) or super().default_metrics(tasks)

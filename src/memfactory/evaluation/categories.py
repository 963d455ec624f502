"""Questions by category, where a dataset's questions are of several. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memfactory.evaluation.statistics import Estimate, estimate
from memfactory.types import Task

NAMES = ("category_name", "question_type", "category", "kind")
"""What the data may call the category of a question (`Task.meta`); the first that a task has counts."""


def categories_of(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """The ids of the tasks by category: numbered ones first, by their number ("1 multi-hop"), then as they come.

    Empty where all tasks are of one category; a task without any is of the category "other".
    """
    found: dict[str, list[str]] = {}
    for task in sorted(tasks, key=lambda task: (_number(task) is None, _number(task) or 0)):
        number = _number(task)
        name = next((str(task.meta[key]) for key in NAMES if task.meta.get(key) is not None), "other")
        found.setdefault(name if number is None or name == str(number) else f"{number} {name}", []).append(task.id)
    return found if len(found) > 1 else {}


def by_category(means: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> dict[str, dict[str, Estimate]]:
    """Each metric's estimate by category, from its question means; a category without a known score is not there."""
    groups = categories_of(tasks)
    found: dict[str, dict[str, Estimate]] = {}
    for metric, given in means.items() if groups else ():
        known = {category: estimate([given[id] for id in ids if id in given]) for category, ids in groups.items()}
        found[metric] = {category: one for category, one in known.items() if one is not None}
    return found


def _number(task: Task) -> int | None:
    number = task.meta.get("category")
    return number if isinstance(number, int) else None

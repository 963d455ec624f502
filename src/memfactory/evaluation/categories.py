"""The questions of a dataset by category. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memfactory.evaluation.statistics import Estimate, estimate
from memfactory.types import Task

NAMES = ("category_name", "question_type", "category", "kind")
"""The keys of `Task.meta` that may hold the category of a question; the first that a task has counts."""


def categories_of(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """The ids of the tasks by category: numbered categories first ("1 multi-hop"), then in the order of the tasks.

    A task without a category belongs to "other". Empty if all tasks belong to one category.
    """
    categories: dict[str, list[str]] = {}
    for task in sorted(tasks, key=lambda task: (_number(task) is None, _number(task) or 0)):
        number = _number(task)
        name = next((str(task.meta[key]) for key in NAMES if task.meta.get(key) is not None), "other")
        categories.setdefault(name if number is None or name == str(number) else f"{number} {name}", []).append(task.id)
    return categories if len(categories) > 1 else {}


def by_category(means: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> dict[str, dict[str, Estimate]]:
    """Each metric's estimate by category, from its question means. Categories without a known score are left out."""
    categories = categories_of(tasks)
    estimates: dict[str, dict[str, Estimate]] = {}
    for metric, by_id in means.items() if categories else ():
        known = {name: estimate([by_id[id] for id in ids if id in by_id]) for name, ids in categories.items()}
        estimates[metric] = {name: value for name, value in known.items() if value is not None}
    return estimates


def _number(task: Task) -> int | None:
    number = task.meta.get("category")
    return number if isinstance(number, int) else None

"""Tasks that do not fit the context: a warning names each once; `train.overlong` leaves them out or refuses them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

from memfactory.build import Runtime
from memfactory.config.training import Overlong
from memfactory.dialogue import Agent, Ask, Dialogue, Shared
from memfactory.engines.base import BoundedEngine, Engine
from memfactory.episode import Episode
from memfactory.errors import DataError, PromptTooLong
from memfactory.trainers.order import TrainingTasks
from memfactory.types import Task

log = logging.getLogger("memfactory")
NAMED = 3


class OverlongTasks:
    """The tasks of a run that do not fit, so that each is reported once."""

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def report(self, reasons: Mapping[str, str]) -> None:
        """Warn of the tasks in `reasons` (by id) that were not reported before."""
        new = {task: reason for task, reason in reasons.items() if task not in self._reported}
        self._reported |= new.keys()
        if new:
            log.warning(
                "episodes of %d %s do not fit the context, so their rewards are unknown and train nothing: %s. "
                "train.overlong: drop leaves out tasks whose first prompt does not fit",
                len(new),
                "task" if len(new) == 1 else "tasks",
                _named(new),
            )


def fitting_tasks(tasks: TrainingTasks, runtime: Runtime, overlong: Overlong) -> TrainingTasks:
    """The tasks that training takes under `train.overlong`.

    With `drop` and `error` the first prompt of an episode of each task is measured. Later prompts depend on the
    policy's replies and are checked when they are sent. Raises DataError under `error` if a task does not fit, and if
    no task is left.
    """
    if overlong == "unknown":
        return tasks
    reasons = {task.id: reason for task in tasks if (reason := first_refusal(runtime.agent, runtime.engines, task))}
    if reasons and (overlong == "error" or len(reasons) == len(tasks)):
        raise DataError(
            f"data.train: {len(reasons)} of {len(tasks)} tasks do not fit the context: {_named(reasons)}. "
            "train.overlong: drop leaves such tasks out"
        )
    if reasons:
        log.warning("data.train: %d of %d tasks left out: %s", len(reasons), len(tasks), _named(reasons))
    return replace(tasks, tasks=tuple(task for task in tasks if task.id not in reasons))


def first_refusal(agent: Agent, engines: Mapping[str, Engine], task: Task) -> str | None:
    """Why the first prompt of an episode of `task` does not fit; None: it fits, or its engine has no limit."""
    episode = Episode(task)
    return _refusal(agent.dialogue(episode), engines)


def _refusal(dialogue: Dialogue, engines: Mapping[str, Engine]) -> str | None:
    with closing(dialogue):
        first = next(dialogue, None)
    if isinstance(first, Shared):
        return _refusal(first.dialogue(Episode(first.task)), engines)
    if isinstance(first, Ask) and isinstance(engine := engines[first.engine], BoundedEngine):
        try:
            engine.check(first.messages)
        except PromptTooLong as error:
            return str(error)
    return None


def _named(reasons: Mapping[str, str]) -> str:
    shown = [f"{task!r} ({reason})" for task, reason in list(reasons.items())[:NAMED]]
    more = len(reasons) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")

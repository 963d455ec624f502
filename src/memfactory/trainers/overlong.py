"""Tasks whose prompts do not fit the context: they are named once, and left out or refused where that is wanted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing

from memfactory.build import Runtime
from memfactory.config.training import Overlong
from memfactory.dialogue import Agent, Ask, Dialogue, Shared
from memfactory.engines.base import BoundedEngine, Engine
from memfactory.episode import Episode
from memfactory.errors import DataError, PromptTooLong
from memfactory.types import Task

log = logging.getLogger("memfactory")
NAMED = 3


class OverlongTasks:
    """The tasks of a run that were found not to fit, so that each is told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, found: Mapping[str, str]) -> None:
        """Warn of those of `found` (task id to reason) that were not told before."""
        new = {task: reason for task, reason in found.items() if task not in self._told}
        self._told |= new.keys()
        if new:
            log.warning(
                "attempts at %d %s do not fit the context, so their rewards are unknown and train nothing: %s. "
                "train.overlong: drop leaves out tasks whose first prompt does not fit",
                len(new),
                "task" if len(new) == 1 else "tasks",
                _named(new),
            )


def fitting_tasks(tasks: Sequence[Task], stack: Runtime, overlong: Overlong) -> tuple[Task, ...]:
    """The tasks that training takes under `train.overlong`.

    With `drop` and `error` the first prompt of an attempt at each task is measured; what an agent asks later depends on
    what the policy writes, and is dealt with when it is asked. Raises DataError under `error` where a task does not
    fit, and where none is left.
    """
    if overlong == "unknown":
        return tuple(tasks)
    found = {task.id: reason for task in tasks if (reason := first_refusal(stack.agent, stack.engines, task))}
    if found and (overlong == "error" or len(found) == len(tasks)):
        raise DataError(
            f"data.train: {len(found)} of {len(tasks)} tasks do not fit the context: {_named(found)}. "
            "train.overlong: drop leaves such tasks out"
        )
    if found:
        log.warning("data.train: %d of %d tasks left out: %s", len(found), len(tasks), _named(found))
    return tuple(task for task in tasks if task.id not in found)


def first_refusal(agent: Agent, engines: Mapping[str, Engine], task: Task) -> str | None:
    """Why the first prompt of an attempt at `task` does not fit; None: it does, or its engine cannot tell before."""
    episode = Episode(task)
    return _refusal(agent.dialogue(episode), engines)


def _refusal(dialogue: Dialogue, engines: Mapping[str, Engine]) -> str | None:
    with closing(dialogue):
        wanted = next(dialogue, None)
    if isinstance(wanted, Shared):
        return _refusal(wanted.dialogue(Episode(wanted.task)), engines)
    if isinstance(wanted, Ask) and isinstance(engine := engines[wanted.engine], BoundedEngine):
        try:
            engine.check(wanted.messages)
        except PromptTooLong as error:
            return str(error)
    return None


def _named(found: Mapping[str, str]) -> str:
    shown = [f"{task!r} ({reason})" for task, reason in list(found.items())[:NAMED]]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")

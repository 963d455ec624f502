"""Groups that wait for the next optimizer step, as JSON: between processes, and in a checkpoint as carried.json.

A group names its task by its place in the order in which tasks are gone through, so that no text is kept twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from memfactory.files import write_json
from memfactory.trainers.batch import TrainingTurn
from memfactory.types import Group, Message, Reading, Reply, Reward, Task, Tokens, Trajectory, Turn

FILE = "carried.json"
TaskAt = Callable[[int], Task]
"""The task at a place of the order."""


def group_json(group: Group) -> dict[str, Any]:
    """`group`, which has a place, without its task."""
    assert group.place is not None
    return {"place": group.place, "trajectories": [_trajectory_json(one) for one in group.trajectories]}


def group_from_json(value: Mapping[str, Any], task_at: TaskAt) -> Group:
    """What `group_json` wrote, bit for bit."""
    place = value["place"]
    return Group(task_at(place), tuple(map(_trajectory, value["trajectories"])), place)


def save_carried(folder: Path, groups: Iterable[Group]) -> None:
    """Write the groups to `folder`; no file where there are none."""
    values = [group_json(group) for group in groups]
    if values:
        write_json(folder / FILE, values)


def load_carried(folder: Path, task_at: TaskAt) -> tuple[Group, ...]:
    """The groups that were saved in `folder`."""
    path = folder / FILE
    if not path.is_file():
        return ()
    return tuple(group_from_json(value, task_at) for value in json.loads(path.read_text(encoding="utf-8")))


def with_sampled_logprobs(turns: Sequence[TrainingTurn], places: frozenset[int]) -> list[TrainingTurn]:
    """The turns with, as old log-probabilities, those at sampling where their group waited for this step.

    The policy that sampled them is not the one before this step's update, so their ratio is to the one that did.
    """
    return [replace(turn, old_logprobs=turn.sampler_logprobs) if turn.prompt in places else turn for turn in turns]


def _trajectory_json(trajectory: Trajectory) -> dict[str, Any]:
    reward = trajectory.reward
    return {
        "member": trajectory.member,
        "answer": trajectory.answer,
        "reward": {"total": reward.total, "parts": dict(reward.parts), "steps": dict(reward.steps)},
        "failure": trajectory.failure,
        "overlong": trajectory.overlong,
        "reading": None if trajectory.reading is None else asdict(trajectory.reading),
        "turns": [asdict(turn) for turn in trajectory.turns],
    }


def _trajectory(value: Mapping[str, Any]) -> Trajectory:
    reward = value["reward"]
    given = Reward(reward["total"], MappingProxyType(reward["parts"]), MappingProxyType(reward["steps"]))
    return Trajectory(
        **{name: value[name] for name in ("member", "answer", "failure", "overlong")},
        turns=tuple(map(_turn, value["turns"])),
        reward=given,
        reading=None if value.get("reading") is None else Reading(**value["reading"]),
    )


def _turn(value: Mapping[str, Any]) -> Turn:
    reply = value["reply"]
    tokens = reply["tokens"]
    if tokens is not None:
        tokens = Tokens(**{name: tuple(numbers) for name, numbers in tokens.items()})
    return Turn(
        step=value["step"],
        messages=tuple(Message(**message) for message in value["messages"]),
        reply=Reply(reply["text"], reply["stop"], tokens),
        trainable=value["trainable"],
        lengths=None if value["lengths"] is None else tuple(value["lengths"]),
    )

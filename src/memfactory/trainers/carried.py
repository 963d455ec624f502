"""Groups that wait for the next optimizer step, as JSON: between processes, and in a checkpoint as carried.json.

A group names its task by its place in the order in which tasks are gone through, so that no text is kept twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import repeat
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from memfactory.files.atomic import write_json
from memfactory.policy.batch import TrainingTurn
from memfactory.types import BankTrace, Group, Task, Trajectory

FILE = "carried.json"
TaskAt = Callable[[int], Task]
"""The task at a place of the order."""


def group_json(group: Group) -> dict[str, Any]:
    """`group`, which has a place, without its task."""
    return {"place": group.place, "trajectories": _plain(group.trajectories)}


def group_from_json(value: Mapping[str, Any], task_at: TaskAt) -> Group:
    """The group that `group_json` wrote, bit for bit."""
    place = value["place"]
    return Group(task_at(place), _restored(tuple[Trajectory, ...], value["trajectories"]), place)


def save_carried(folder: Path, groups: Iterable[Group]) -> None:
    """Write the groups to `folder`; no file without groups."""
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
    """The turns; those of groups that waited for this step get the log-probabilities at sampling as their old ones.

    An earlier policy than that before this step's update sampled them, and their ratio is to that earlier policy.
    """
    return [replace(turn, old_logprobs=turn.sampler_logprobs) if turn.prompt in places else turn for turn in turns]


def _plain(value: Any) -> Any:
    """A value of frozen dataclasses, tuples and mappings as JSON has it."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _restored(kind: Any, value: Any) -> Any:
    """The inverse of `_plain` for a value of type `kind`."""
    if value is None:
        return None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (kind,) = (each for each in arguments if each is not NoneType)
        return _restored(kind, value)
    if origin is tuple:
        kinds = repeat(arguments[0]) if arguments[-1] is Ellipsis else arguments
        return tuple(_restored(each, plain) for each, plain in zip(kinds, value, strict=False))
    if origin is Mapping:
        return MappingProxyType({name: _restored(arguments[1], plain) for name, plain in value.items()})
    if isinstance(kind, type) and is_dataclass(kind):
        types, make = _types(kind), cast(Callable[..., Any], kind)
        return make(**{name: _restored(types[name], plain) for name, plain in value.items()})
    return value


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, localns={"BankTrace": BankTrace})

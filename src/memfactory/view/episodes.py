"""What a page shows: attempts with their turns and memory banks, in one shape whatever command wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")
ITEMS_SHOWN = 500
ROWS_SHOWN = 400


@dataclass(frozen=True)
class Bank:
    """A memory bank: its items and every change, each with the number of the turn that led to it (None: none shown)."""

    items: Sequence[Mapping[str, Any]]
    changes: Sequence[Mapping[str, Any]]
    retrieved: Sequence[str]
    citations: Sequence[str]
    size: int

    @staticmethod
    def of(value: Mapping[str, Any]) -> Bank:
        """The bank of a record: `items`, `changes` or `operations`, `retrieved` by id or as items, `citations`."""
        items = value.get("items") or [item for item in value.get("retrieved", ()) if isinstance(item, dict)]
        retrieved = [item["id"] if isinstance(item, dict) else item for item in value.get("retrieved", ())]
        changes = value.get("changes") or value.get("operations") or ()
        size = value.get("size", len(items))
        return Bank(items[:ITEMS_SHOWN], changes[:ITEMS_SHOWN], retrieved, value.get("citations") or (), size)


@dataclass(frozen=True)
class Attempt:
    """One attempt. `label` and `score` name it among the attempts of its group, `facts` are titled lines above its
    turns, and each turn is as its command records it."""

    label: str
    score: float | None
    facts: Sequence[tuple[str, str]]
    turns: Sequence[Mapping[str, Any]]
    bank: Bank | None = None


@dataclass(frozen=True)
class Group:
    """Attempts at one task."""

    title: str
    attempts: Sequence[Attempt]


@dataclass(frozen=True)
class Page:
    """A whole page: notes, figures (data: URLs by name), a table of evaluations, the config, and groups by section (an
    optimizer step, or a dataset under a model)."""

    name: str
    sections_are: str
    sections: Sequence[tuple[str, Sequence[Group]]]
    notes: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    evaluations: Sequence[Mapping[str, object]] = ()
    config: str = ""

    def to_json(self) -> dict[str, object]:
        sections = [{"title": title, "groups": [asdict(group) for group in groups]} for title, groups in self.sections]
        return {**vars(self), "figures": dict(self.figures), "sections": sections}


def grouped(rows: Iterable[tuple[str, str, Attempt]]) -> list[Group]:
    """Groups of (task, question, attempt), in the order in which their tasks first come."""
    groups: dict[str, tuple[str, list[Attempt]]] = {}
    for task, question, attempt in rows:
        groups.setdefault(task, (question, []))[1].append(attempt)
    return [Group(question[:80], attempts) for question, attempts in groups.values()]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` (2 or more) of `items`, evenly spread from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def within(folder: Path, path: Path) -> bool:
    """Whether `path` is there and is, with every link followed, inside `folder`."""
    return path.exists() and path.resolve().is_relative_to(folder.resolve())


def scores_told(scores: Mapping[str, float | None]) -> str:
    """Named scores in a line."""
    return ", ".join(f"{name} {'unknown' if score is None else format(score, '.3f')}" for name, score in scores.items())

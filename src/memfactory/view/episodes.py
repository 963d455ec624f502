"""Episodes with their turns and memory banks as a page shows them, in one shape for every command that wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
ITEMS_SHOWN = 500
ROWS_SHOWN = 400


@dataclass(frozen=True)
class Bank:
    """A memory bank: its items and its changes. A change names the number of its turn (None: no turn of the episode).

    `size` counts all items, shown or not.
    """

    items: Sequence[Mapping[str, Any]]
    changes: Sequence[Mapping[str, Any]]
    retrieved: Sequence[str]
    citations: Sequence[str]
    size: int

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Bank:
        """The bank of a record: `items`, `changes` or `operations`, `retrieved` (ids or items), `citations`."""
        items = record.get("items") or [item for item in record.get("retrieved", ()) if isinstance(item, dict)]
        retrieved = [item["id"] if isinstance(item, dict) else item for item in record.get("retrieved", ())]
        changes = record.get("changes") or record.get("operations") or ()
        size = record.get("size", len(items))
        return Bank(items[:ITEMS_SHOWN], changes[:ITEMS_SHOWN], retrieved, record.get("citations") or (), size)


@dataclass(frozen=True)
class ShownEpisode:
    """One episode. `label` and `score` tell it from others of its group, `facts` are titled lines above its turns.

    The turns are as the command recorded them.
    """

    label: str
    score: float | None
    facts: Sequence[tuple[str, str]]
    turns: Sequence[Mapping[str, Any]]
    bank: Bank | None = None


@dataclass(frozen=True)
class EpisodeGroup:
    """The episodes of one task."""

    title: str
    episodes: Sequence[ShownEpisode]


def group_by_task(rows: Iterable[tuple[str, str, ShownEpisode]]) -> list[EpisodeGroup]:
    """Groups of (task, question, episode), in the order in which their tasks first appear."""
    groups: dict[str, tuple[str, list[ShownEpisode]]] = {}
    for task, question, episode in rows:
        groups.setdefault(task, (question, []))[1].append(episode)
    return [EpisodeGroup(question[:80], episodes) for question, episodes in groups.values()]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` (2 or more) of `items`, evenly spread from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def format_scores(scores: Mapping[str, float | None]) -> str:
    """The scores by name in one line."""
    return ", ".join(f"{name} {format_score(score)}" for name, score in scores.items())


def format_score(score: float | None) -> str:
    """A score as the page shows it."""
    return "unknown" if score is None else format(score, ".3f")

"""The memory of an episode and its changes, for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from memfactory.console import Console
from memfactory.episode import Episode
from memfactory.formats.render import render_item
from memfactory.types import MemoryItem, Turn

Items = Mapping[str, MemoryItem]
"""The items of a memory bank by id."""
MOST_CELLS = 250_000
"""The most removed words times added words for a comparison word by word: some tenths of a second."""


class MemoryView:
    """Prints the memory of each episode whenever it changes.

    In a text memory, new words are green and removed words are struck out in red. Of a memory bank it prints the new
    (+), changed (~) and removed (-) items. `named`: titles name the task.
    """

    def __init__(self, console: Console, *, named: bool) -> None:
        self.console = console
        self.named = named
        self._last: dict[str, str] = {}
        self._items: dict[str, Items] = {}

    def show(self, episode: Episode, turn: Turn) -> None:
        """Print the changes of `turn`, to be called after the agent has processed it."""
        if episode.bank is not None:
            self._show_bank(episode, turn, {item.id: item for item in episode.bank.list()})
            return
        last = self._last.get(episode.task.id, "")
        if episode.memory == last:
            return
        self._last[episode.task.id] = episode.memory
        self._title(episode, turn, f"{len(episode.memory.split())} words")
        self.console.print(word_difference(last, episode.memory) if self.console.is_terminal else Text(episode.memory))

    def _show_bank(self, episode: Episode, turn: Turn, items: Items) -> None:
        shown = items in self._items.values()  # Several questions share a bank, which was shown when it was built.
        changes = bank_difference(self._items.get(episode.task.id, {}), items)
        self._items[episode.task.id] = items
        if changes and not shown:
            self._title(episode, turn, f"{len(items)} items")
            for change in changes:
                self.console.print(change, soft_wrap=True)

    def _title(self, episode: Episode, turn: Turn, size: str) -> None:
        name = f"{episode.task.id}, " if self.named else ""
        cut = " (cut by length)" if turn.reply.stop == "length" else ""
        self.console.rule(Text(f"{name}turn {len(episode.turns)} ({turn.step}): {size}{cut}"), align="left")


def bank_difference(before: Items, after: Items) -> list[Text]:
    """A line for every removed, changed and new item, in this order."""
    removed = [Text(f"- {id}: {render_item(item)}", "red") for id, item in before.items() if id not in after]
    changed = [
        Text.assemble(f"~ {id}: ", word_difference(render_item(before[id]), render_item(item)))
        for id, item in after.items()
        if id in before and before[id] != item
    ]
    new = [Text(f"+ {id}: {render_item(item)}", "green") for id, item in after.items() if id not in before]
    return [*removed, *changed, *new]


def word_difference(before: str, after: str) -> Text:
    """`after` with its new words in green, and the removed words of `before` struck out in red."""
    old, new = re.findall(r"\S+\s*", before), re.findall(r"\S+\s*", after)
    text = Text()
    for same, removed, added in _differences([word.strip() for word in old], [word.strip() for word in new]):
        for words, style in ((new[same], ""), (old[removed], "red strike"), (new[added], "green")):
            if words:
                text.append("" if text.plain[-1:].strip() == "" else " ")
                text.append("".join(words).rstrip() if style == "red strike" else "".join(words), style=style)
    return text


def _differences(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of common words in `new`, then removed words in `old`, then added words in `new`, from left to right.

    By the longest common subsequence. Texts too long for that differ as a whole between their common ends.
    """
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    common = _common(old[head : len(old) - tail], new[head : len(new) - tail])
    pairs = [*((n, n) for n in range(head)), *((i + head, j + head) for i, j in common)]
    pairs += [(len(old) - n, len(new) - n) for n in range(tail, -1, -1)]
    begin, i, j = 0, 0, 0
    for at_old, at_new in pairs:
        if (at_old, at_new) != (i, j):
            yield slice(begin, j), slice(i, at_old), slice(j, at_new)
            begin = at_new
        i, j = at_old + 1, at_new + 1
    yield slice(begin, len(new)), slice(0, 0), slice(0, 0)


def _common(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """The index pairs of a longest common subsequence; none if its table would be too large."""
    if len(old) * len(new) > MOST_CELLS:
        return []
    lengths = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        row, below = lengths[i], lengths[i + 1]
        for j in reversed(range(len(new))):
            row[j] = below[j + 1] + 1 if old[i] == new[j] else max(below[j], row[j + 1])
    pairs, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        if old[i] == new[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif lengths[i + 1][j] >= lengths[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs

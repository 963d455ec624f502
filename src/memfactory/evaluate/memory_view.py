"""An episode's memory as it evolves, for a terminal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from rich.text import Text

from memfactory.console import Console
from memfactory.memory.wording import dated
from memfactory.types import Episode, MemoryItem, Turn

Items = Mapping[str, MemoryItem]
"""The items of a memory bank by id."""


class MemoryView:
    """Prints each episode's memory whenever it has changed.

    Of a text memory new words are green and words that went are struck out in red; of a memory bank the items that are
    new (+), changed (~) and gone (-) are told.
    """

    def __init__(self, console: Console, *, named: bool) -> None:
        self.console = console
        self.named = named
        self._last: dict[str, str] = {}
        self._items: dict[str, Items] = {}

    def show(self, episode: Episode, turn: Turn) -> None:
        """To be told of every turn, once the agent has taken it in."""
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
        shown = items in self._items.values()  # A bank that was built for several questions, where it was built.
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
    """A line for every item that is gone, changed or new, in this order."""
    gone = [Text(f"- {id}: {dated(item)}", "red") for id, item in before.items() if id not in after]
    changed = [
        Text.assemble(f"~ {id}: ", word_difference(dated(before[id]), dated(item)))
        for id, item in after.items()
        if id in before and before[id] != item
    ]
    new = [Text(f"+ {id}: {dated(item)}", "green") for id, item in after.items() if id not in before]
    return [*gone, *changed, *new]


def word_difference(before: str, after: str) -> Text:
    """`after` with its new words in green and the words of `before` that went struck out in red."""
    old, new = re.findall(r"\S+\s*", before), re.findall(r"\S+\s*", after)
    text = Text()
    matcher = difflib.SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], False)
    for kind, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if kind in ("delete", "replace"):
            text.append("".join(old[old_from:old_to]).rstrip(), style="red strike")
            text.append(" ")
        if kind != "delete":
            text.append("".join(new[new_from:new_to]), style="" if kind == "equal" else "green")
    return text

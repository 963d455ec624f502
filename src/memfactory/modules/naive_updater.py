"""The module `naive_updater`: decides which candidates join the memory bank and which items they change or replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from memfactory.components import ModuleOptions
from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.files.atomic import json_text
from memfactory.formats.render import numbered_list
from memfactory.formats.updates import parse_mem0, parse_operations
from memfactory.memory.bank import MemoryBank
from memfactory.memory.options import Search
from memfactory.registry import MODULES
from memfactory.roles import Updater
from memfactory.text import fill
from memfactory.types import Candidate, MemoryItem, Message

UPDATE_PROMPT = """\
Bring the memory up to date. Give one operation for each number.
Memory: NONE keeps an entry, DEL deletes one that a new entry contradicts.
New: ADD takes up an entry, UPDATE takes it up with a better key and value, NONE leaves it out.

<memory>
{memory}
</memory>

<new>
{candidates}
</new>

Reply with JSON: {"operations": [{"id": 1, "op": "NONE"}]}"""

MEM0_PROMPT = """\
You keep a memory. Compare it with the facts that were just found, and write the memory as it should be then: every
entry it has, and every new one. Give each entry an event:
NONE: it stays as it is. Use this too where a fact says nothing new.
UPDATE: a fact adds to it or corrects it. Keep its id and write the new text, with the old one under "old_memory".
DELETE: a fact contradicts it and nothing of it remains. Keep its id.
ADD: it is new. Give it an id that is not in use.

<memory>
{memory}
</memory>

<facts>
{candidates}
</facts>

Reply with JSON: {"memory": [{"id": "0", "text": "entry", "event": "NONE"}]}"""


SHORT_PROMPT = """\
Give one operation for each number: NONE keeps, DEL deletes a wrong entry, ADD takes up a new one.

Memory:
{memory}

New:
{candidates}

Reply with JSON: {"operations": [{"id": 1, "op": "NONE"}]}"""

SHORT_MEM0_PROMPT = """\
Memory: {memory}
New facts: {candidates}

Write the memory as it should be now, each entry with an event: NONE, UPDATE, DELETE or ADD.
Reply with JSON: {"memory": [{"id": "0", "text": "entry", "event": "NONE"}]}"""


class NaiveUpdaterOptions(ModuleOptions):
    """Options of `naive_updater`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    format: Literal["operations", "mem0"] = "operations"
    """The reply's shape: operations by temporary id, or the list `memory` of mem0 and Memory-R1."""
    prompt: str | None = None
    """The prompt; {memory} and {candidates} are filled in. null: the default of the format."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    related: int = Field(3, ge=0)
    """Items of the bank that are looked up for each candidate."""
    shown: int = Field(16, ge=0)
    """The most items of the bank in the prompt."""
    search: Search | None = None
    """The search for items: dense, bm25 or hybrid; null: the run's `memory.search`."""

    @classmethod
    def preset(cls, name: str, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """The short prompt is that of the format."""
        is_mem0 = name == "short" and others.get("format") == "mem0"
        return {"prompt": SHORT_MEM0_PROMPT} if is_mem0 else super().preset(name, others)

    @property
    def wording(self) -> str:
        """The prompt of the options, or the default of the format."""
        return self.prompt or (MEM0_PROMPT if self.format == "mem0" else UPDATE_PROMPT)

    def worded(self) -> dict[str, Any]:
        return {"prompt": self.wording}

    def without_effect(self) -> Mapping[str, str]:
        return {} if self.related else {"search": "related is 0"}


@MODULES.register("naive_updater")
class NaiveUpdater(Updater[NaiveUpdaterOptions]):
    """Decides on an operation for each candidate and each item that it may touch: ADD, DEL, UPDATE or NONE."""

    steps = ("update",)

    def dialogue(self, episode: Episode, bank: MemoryBank, candidates: Sequence[Candidate]) -> Asking[None]:
        options = self.options
        if not candidates:
            return
        items = self.items(bank, candidates, episode.task.related)
        if options.format == "mem0":
            texts = [{"id": str(number), "text": item.text} for number, item in enumerate(items)]
            values = {"memory": json_text(texts), "candidates": json_text([candidate.text for candidate in candidates])}
        else:
            values = {"memory": numbered_list([item.text for item in items])}
            values["candidates"] = numbered_list([candidate.text for candidate in candidates], len(items) + 1)
        reply = yield Ask("update", (Message("user", fill(options.wording, values)),), options.max_tokens)
        parse = parse_mem0 if options.format == "mem0" else parse_operations
        decision = parse(reply.text, items, candidates)
        report = bank.apply(decision.operations)
        assert report.committed, report
        episode.check("update", decision.form)

    def items(
        self, bank: MemoryBank, candidates: Sequence[Candidate], related: Sequence[str] | None
    ) -> list[MemoryItem]:
        """At most `shown` items that the candidates may touch, in the order of the bank.

        The items that the task names, else the items that match each candidate best, in its own namespace if it has
        one: first the best match of each, then the second best, and so on.
        """
        options = self.options
        if related is None:
            ranked = [[item.id for item in self._matching(bank, candidate)] for candidate in candidates]
            related = [id for rank in zip_longest(*ranked) for id in rank if id is not None]
        ids = list(dict.fromkeys(id for id in related if bank.get(id) is not None))[: options.shown]
        return [item for item in bank.list() if item.id in ids]

    def _matching(self, bank: MemoryBank, candidate: Candidate) -> list[MemoryItem]:
        options = self.options
        if not options.related:
            return []
        namespaces = [candidate.namespace] if candidate.namespace else None
        matches = bank.search(candidate.text, options.related, mode=options.search, namespaces=namespaces)
        return [match.item for match in matches]

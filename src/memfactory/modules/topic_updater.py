"""The module `topic_updater`: RMM's prospective reflection adds a new topic or merges it (arXiv 2503.08026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field

from memfactory.components import ModuleOptions
from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.files.atomic import json_text
from memfactory.formats.updates import parse_merges
from memfactory.memory.bank import MemoryBank
from memfactory.memory.operations import Add
from memfactory.memory.options import Search
from memfactory.registry import MODULES
from memfactory.roles import Updater
from memfactory.text import fill
from memfactory.types import Candidate, MemoryItem, Message

MERGE_PROMPT = """\
A new summary is to join a memory. Reply with one action a line and nothing else.
Add() takes it up beside the others.
Merge(index, merged_summary) joins it with a summary on the same topic, counted from 0.

{memory}
{candidate}"""


SHORT_PROMPT = """\
Add() takes up a new summary. Merge(index, text) joins it with an old one on the same topic.

{memory}
{candidate}

Reply with one line, such as Merge(0, text) or Add():"""


class TopicUpdaterOptions(ModuleOptions):
    """Options of `topic_updater`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    prompt: str = MERGE_PROMPT
    """The prompt; {memory} (the similar summaries) and {candidate} (the new one) are filled in, both as JSON."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    similar: int = Field(5, ge=1)
    """Items of the bank that each new summary may be merged with."""
    search: Search | None = None
    """The search for items: dense, bm25 or hybrid; null: the run's `memory.search`."""


@MODULES.register("topic_updater")
class TopicUpdater(Updater[TopicUpdaterOptions]):
    """Adds each new summary to the bank, or merges it with one on the same topic."""

    steps = ("update",)

    def dialogue(self, episode: Episode, bank: MemoryBank, candidates: Sequence[Candidate]) -> Asking[None]:
        for candidate in candidates:
            items = self._similar(bank, candidate)
            if not items:
                # No item to merge with: no question for the model.
                bank.apply([Add(candidate)])
                continue
            memory = json_text({"history_summaries": [item.text for item in items]})
            values = {"memory": memory, "candidate": json_text({"new_summary": candidate.text})}
            prompt = fill(self.options.prompt, values)
            reply = yield Ask("update", (Message("user", prompt),), self.options.max_tokens)
            decision = parse_merges(reply.text, items, candidate)
            report = bank.apply(decision.operations)
            assert report.committed, report
            episode.check("update", decision.form)

    def _similar(self, bank: MemoryBank, candidate: Candidate) -> list[MemoryItem]:
        """The items most like the candidate, the best first, in its own namespace if it has one."""
        namespaces = [candidate.namespace] if candidate.namespace else None
        options = self.options
        matches = bank.search(candidate.text, options.similar, mode=options.search, namespaces=namespaces)
        return [match.item for match in matches]

"""The module `naive_retriever`: the items of the bank that match the question best. It uses no model."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from memfactory.components import ModuleOptions
from memfactory.dialogue import Asking
from memfactory.episode import Episode
from memfactory.memory.bank import Match, MemoryBank
from memfactory.memory.options import Search
from memfactory.registry import MODULES
from memfactory.roles import Retriever
from memfactory.types import MemoryItem


class NaiveRetrieverOptions(ModuleOptions):
    """Options of `naive_retriever`."""

    k: int = Field(30, ge=1)
    """The most items that are retrieved."""
    per_namespace: bool = False
    """Whether `k` applies to each namespace, such as a speaker's memories (Memory-R1: 30 per speaker), or to all."""
    min_score: float | None = None
    """Items with a lower score are left out; null: none."""
    search: Search | None = None
    """The search for items: dense, bm25 or hybrid; null: the run's `memory.search`."""


@MODULES.register("naive_retriever")
class NaiveRetriever(Retriever[NaiveRetrieverOptions]):
    """Retrieves the items of the bank that match the question best, the best first."""

    def dialogue(self, episode: Episode, bank: MemoryBank) -> Asking[tuple[MemoryItem, ...]]:
        yield from ()
        return tuple(match.item for match in self.matches(bank, episode.task.question))

    def matches(self, bank: MemoryBank, question: str) -> list[Match]:
        """The items and their scores, the best first."""
        if not self.options.per_namespace:
            return self._search(bank, question, None)
        names = dict.fromkeys(item.namespace for item in bank.list())
        matches = [match for name in names for match in self._search(bank, question, [name])]
        return sorted(matches, key=lambda match: -match.score)

    def _search(self, bank: MemoryBank, question: str, namespaces: Sequence[str] | None) -> list[Match]:
        options = self.options
        return bank.search(question, options.k, mode=options.search, namespaces=namespaces, min_score=options.min_score)

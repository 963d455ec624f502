"""The module `rerank_retriever`: the language model chooses among the items that match the question."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from memfactory.components import ModuleOptions
from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.formats.render import numbered_list
from memfactory.memory.bank import MemoryBank
from memfactory.memory.options import Search
from memfactory.registry import MODULES
from memfactory.roles import Retriever
from memfactory.text import after_thinking, fill, listed_numbers
from memfactory.types import MemoryItem, Message

RERANK_PROMPT = """\
Choose the memories that help to answer the question: at most {limit}, the best first.

<memory>
{memory}
</memory>

<question>
{question}
</question>

Reply with their numbers, such as [2, 1]:"""


SHORT_PROMPT = """\
{memory}

Question: {question}
Which lines answer the question? Reply with at most {limit} numbers in brackets, such as [2]:"""


class RerankRetrieverOptions(ModuleOptions):
    """Options of `rerank_retriever`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    prompt: str = RERANK_PROMPT
    """The prompt; {question}, {memory} and {limit} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    candidates: int = Field(20, ge=1)
    """Items that the search returns (K)."""
    keep: int = Field(5, ge=1)
    """The most items that the model may choose (M)."""
    search: Search | None = None
    """The search for items: dense, bm25 or hybrid; null: the run's `memory.search`."""
    order: Literal["search", "bank"] = "search"
    """The order of the items in the prompt: the best first (search), or the order of the bank."""
    fallback: Literal["none", "search"] = "none"
    """The items after a reply without a usable number: none, or the `keep` items that match best (search). With
    `search` a malformed reply can earn more than a poor choice."""


@dataclass(frozen=True)
class Choice:
    """The numbers that a reply chooses, the best first, and its form: 1 for a bare list of distinct numbers that were
    all shown, less for a repaired list, 0 for no choice."""

    numbers: tuple[int, ...]
    form: float


def parse_choice(text: str, shown: int, limit: int) -> Choice:
    """The first `[...]` after thinking as numbers from 1 to `shown`, at most `limit` of them.

    Other entries, repeated numbers and those beyond `limit` are left out. `form` is the fraction of the list's entries
    that were used; words around the list count as one entry more.
    """
    reply = after_thinking(text)
    choice = re.search(r"\[([^\[\]]*)\]", reply) if reply is not None else None
    if reply is None or choice is None:
        return Choice((), 0.0)
    numbers, entries = listed_numbers(choice.group(1), range(1, shown + 1))
    numbers = numbers[:limit]
    has_other_words = reply.strip() != choice.group()
    return Choice(numbers, len(numbers) / (entries + has_other_words) if numbers else 0.0)


@MODULES.register("rerank_retriever")
class RerankRetriever(Retriever[RerankRetrieverOptions]):
    """Lets the language model choose among the items that match the question."""

    steps = ("rerank",)

    def dialogue(self, episode: Episode, bank: MemoryBank) -> Asking[tuple[MemoryItem, ...]]:
        options, question = self.options, episode.task.question
        ranked = [match.item for match in bank.search(question, options.candidates, mode=options.search)]
        if not ranked:
            return ()
        shown = ranked if options.order == "search" else _in_bank_order(bank, ranked)
        memory = numbered_list([item.text for item in shown])
        prompt = fill(options.prompt, {"question": question, "memory": memory, "limit": str(options.keep)})
        reply = yield Ask("rerank", (Message("user", prompt),), options.max_tokens)
        choice = parse_choice(reply.text, len(shown), options.keep)
        episode.check("rerank", choice.form)
        if not choice.numbers and options.fallback == "search":
            return tuple(ranked[: options.keep])
        return tuple(shown[number - 1] for number in choice.numbers)


def _in_bank_order(bank: MemoryBank, items: list[MemoryItem]) -> list[MemoryItem]:
    """`items` in the order of the bank."""
    places = {item.id: place for place, item in enumerate(bank.list())}
    return sorted(items, key=lambda item: places[item.id])

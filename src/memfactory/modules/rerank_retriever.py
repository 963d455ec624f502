"""The module `rerank_retriever`: the language model chooses among the items that were found for the question."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from memfactory.dialogue import Asking, Module, ModuleOptions
from memfactory.memory.options import Search
from memfactory.registry import MODULES
from memfactory.types import Episode

RERANK_PROMPT = """\
Choose the memories that help to answer the question: at most {limit}, the best first.

<memory>
{memory}
</memory>

<question>
{question}
</question>

Reply with their numbers, such as [2, 1]:"""


class RerankRetrieverOptions(ModuleOptions):
    """Options of `rerank_retriever`."""

    prompt: str = RERANK_PROMPT
    """The wording; {question}, {memory} and {limit} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    candidates: int = Field(20, ge=1)
    """Items that are found first (K)."""
    keep: int = Field(5, ge=1)
    """The most items that are chosen (M)."""
    search: Search | None = None
    """How items are found: dense, bm25 or hybrid; null: as the run's `memory.search` says."""


@MODULES.register("rerank_retriever")
class RerankRetriever(Module):
    """Lets the language model choose among the items that were found for the question."""

    Options: ClassVar[type[RerankRetrieverOptions]] = RerankRetrieverOptions
    options: RerankRetrieverOptions
    steps = ("rerank",)

    def dialogue(self, episode: Episode) -> Asking:
        raise NotImplementedError
        yield

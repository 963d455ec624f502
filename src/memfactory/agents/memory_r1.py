"""Memory-R1's agent: a manager that keeps a memory bank, and an agent that answers from it (arXiv 2508.19828)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from memfactory.agents.bank_agent import BankAgent
from memfactory.registry import AGENTS


@AGENTS.register("memory_r1")
class MemoryR1(BankAgent):
    """Keeps a bank of structured entries and answers from those that match the question."""

    slots: ClassVar[Mapping[str, str]] = {
        "extractor": "naive_extractor",
        "updater": "naive_updater",
        "retriever": "naive_retriever",
        "answerer": "answer",
    }

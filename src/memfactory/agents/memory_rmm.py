"""RMM's agent: a bank of topics, a trained reranker, and an answer with citations (arXiv 2503.08026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from memfactory.agents.bank_agent import BankAgent
from memfactory.registry import AGENTS


@AGENTS.register("memory_rmm")
class MemoryRMM(BankAgent):
    """Summarizes conversations by topic, reranks the items that match the question, and answers with citations."""

    slots: ClassVar[Mapping[str, str]] = {
        "extractor": "topic_extractor",
        "updater": "topic_updater",
        "retriever": "rerank_retriever",
        "answerer": "citing_answer",
    }

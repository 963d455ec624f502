"""LongMemEval's retrieval metrics: `evidence_any`, `evidence_all` and `evidence_ndcg` (arXiv 2410.10813).

They read `episode.retrieved` (the `sources` of its items, best first) and `task.evidence`. With `by: session` both are
reduced to sessions, the part of an id before its last colon ("D3:7" is of session D3), and the ranking counts distinct
sessions. A task without gold evidence has an unknown score. A paper's "Recall@5" without a definition may be any of
`evidence_any`, `evidence_all` and `evidence_recall`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.types import MemoryItem


class EvidenceRankingOptions(RewardOptions):
    """Options of `evidence_any`, `evidence_all` and `evidence_ndcg`."""

    k: int = Field(5, ge=1)
    """The length of the ranking, in items or in distinct sessions."""
    by: Literal["turn", "session"] = "turn"
    """The unit of evidence: turns or their sessions."""


class EvidenceRanking(EpisodeReward[EvidenceRankingOptions]):
    """A score by the first rank of each gold evidence id."""

    def score_of(self, episode: Episode) -> float | None:
        by_session = self.options.by == "session"
        gold = {_session(id) if by_session else id for id in episode.task.evidence}
        if not gold:
            return None
        ranks = session_ranks(episode.retrieved) if by_session else turn_ranks(episode.retrieved)
        return self.worth(gold, {id: rank for id, rank in ranks.items() if rank <= self.options.k})

    @abstractmethod
    def worth(self, gold: Collection[str], ranks: Mapping[str, int]) -> float:
        """The score of gold ids with these ranks (1 to k); ids without a rank were not retrieved."""


@REWARDS.register("evidence_any")
class EvidenceAny(EvidenceRanking):
    """LongMemEval's recall_any@k: 1 if any of the gold evidence is among the first k."""

    def worth(self, gold: Collection[str], ranks: Mapping[str, int]) -> float:
        return float(any(id in ranks for id in gold))


@REWARDS.register("evidence_all")
class EvidenceAll(EvidenceRanking):
    """LongMemEval's recall_all@k: 1 if all of the gold evidence is among the first k."""

    def worth(self, gold: Collection[str], ranks: Mapping[str, int]) -> float:
        return float(all(id in ranks for id in gold))


@REWARDS.register("evidence_ndcg")
class EvidenceNdcg(EvidenceRanking):
    """LongMemEval's ndcg@k: the sum of 1 / max(1, log2(rank)) over the retrieved gold evidence, divided by the ideal.

    The first two ranks count alike, as in LongMemEval's script. The ideal ranking has one gold id at each rank; an item
    from several turns has all of them at its rank, and a better sum than the ideal counts as 1.
    """

    def worth(self, gold: Collection[str], ranks: Mapping[str, int]) -> float:
        gain = sum(_gain(ranks[id]) for id in gold if id in ranks)
        return min(1.0, gain / sum(_gain(rank) for rank in range(1, min(len(gold), self.options.k) + 1)))


def turn_ranks(items: Sequence[MemoryItem]) -> dict[str, int]:
    """The rank (from 1) of the first item with each turn among its sources."""
    ranks: dict[str, int] = {}
    for rank, item in enumerate(items, start=1):
        for source in item.sources:
            ranks.setdefault(source, rank)
    return ranks


def session_ranks(items: Sequence[MemoryItem]) -> dict[str, int]:
    """The rank (from 1) of each session among the distinct sessions, in the order of the items."""
    sessions = dict.fromkeys(_session(source) for item in items for source in item.sources)
    return {session: rank for rank, session in enumerate(sessions, start=1)}


def _session(id: str) -> str:
    return id.rpartition(":")[0] or id


def _gain(rank: int) -> float:
    return 1 / max(1.0, math.log2(rank))

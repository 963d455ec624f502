"""Rewards on gold evidence: `evidence_recall` (of retrieval), `evidence_kept` and `m_fail` (of the final bank).

They compare the ids of an item's `sources`, not its text: an item that merges everything covers all evidence, and so
does a topic of `topic_extractor` that names all turns. They show where evidence is lost, and belong beside a reward of
the answer. A task without gold evidence has an unknown score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import EpisodeReward, RewardT
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.types import MemoryItem


class EvidenceReward(EpisodeReward[RewardT]):
    """A score by the fraction of a task's gold evidence among the sources of some items."""

    def score_of(self, episode: Episode) -> float | None:
        gold = set(episode.task.evidence)
        if not gold:
            return None
        covered = {source for item in self.items(episode) for source in item.sources}
        return self.worth(len(gold & covered) / len(gold))

    @abstractmethod
    def items(self, episode: Episode) -> Iterable[MemoryItem]:
        """The items whose sources count."""

    def worth(self, fraction: float) -> float:
        """The score of a covered fraction of the evidence."""
        return fraction


class EvidenceRecallOptions(RewardOptions):
    """Options of `evidence_recall`."""

    k: int | None = Field(None, ge=1)
    """The number of retrieved items that count, from the first (recall@k); null counts all."""


@REWARDS.register("evidence_recall")
class EvidenceRecall(EvidenceReward[EvidenceRecallOptions]):
    """Recall of the gold evidence among the sources of the retrieved items.

    Reads `episode.retrieved` (their `sources`) and `task.evidence`.
    """

    def items(self, episode: Episode) -> Iterable[MemoryItem]:
        return episode.retrieved[: self.options.k]


@REWARDS.register("evidence_kept")
class BankEvidence(EvidenceReward):
    """Recall of the gold evidence among the sources of the final bank's items; 0 without a bank.

    Reads `episode.bank` (the `sources` of its items) and `task.evidence`.
    """

    def items(self, episode: Episode) -> Iterable[MemoryItem]:
        return () if episode.bank is None else episode.bank.list()


@REWARDS.register("m_fail")
class MFail(BankEvidence):
    """Memory-R2's M-Fail (arXiv 2605.21768): fraction of the gold evidence missing in the bank; lower is better.

    It is 1 minus `evidence_kept`, and reads the same.
    """

    def worth(self, fraction: float) -> float:
        return 1 - fraction

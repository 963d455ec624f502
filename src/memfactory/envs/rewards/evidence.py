"""Rewards on gold evidence: `evidence_recall` (what was retrieved), `evidence_kept` and `m_fail` (what the bank holds).

They go by the ids of the utterances that an item says it comes from (its `sources`), not by what it says: an item that
joins everything covers all evidence, and so does one topic of `topic_extractor`, whose reply names its turns itself,
that names them all. So they say where evidence was lost, and belong beside a reward of the answer.
A task without gold evidence has an unknown score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import RewardFunction, RewardT
from memfactory.episode import Episode
from memfactory.registry import REWARDS
from memfactory.types import MemoryItem


class EvidenceReward(RewardFunction[RewardT]):
    """A score by the share of a task's gold evidence that some items come from."""

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> float | None:
        gold = set(episode.task.evidence)
        if not gold:
            return None
        covered = {source for item in self.items(episode) for source in item.sources}
        return self.worth(len(gold & covered) / len(gold))

    @abstractmethod
    def items(self, episode: Episode) -> Iterable[MemoryItem]:
        """The items that are looked at."""

    def worth(self, share: float) -> float:
        """What a covered share of the evidence is worth."""
        return share


class EvidenceRecallOptions(RewardOptions):
    """Options of `evidence_recall`."""

    k: int | None = Field(None, ge=1)
    """Only the first so many retrieved items count (recall@k); null: all of them."""


@REWARDS.register("evidence_recall")
class EvidenceRecall(EvidenceReward[EvidenceRecallOptions]):
    """The share of the gold evidence that the retrieved items come from.

    Reads `episode.retrieved` (their `sources`) and `task.evidence`.
    """

    def items(self, episode: Episode) -> Iterable[MemoryItem]:
        return episode.retrieved[: self.options.k]


@REWARDS.register("evidence_kept")
class EvidenceKept(EvidenceReward):
    """The share of the gold evidence that items of the memory bank come from at the end; without a bank 0.

    Reads `episode.bank` (the `sources` of its items) and `task.evidence`.
    """

    def items(self, episode: Episode) -> Iterable[MemoryItem]:
        return () if episode.bank is None else episode.bank.list()


@REWARDS.register("m_fail")
class MFail(EvidenceKept):
    """Memory-R2's M-Fail (arXiv 2605.21768), lower is better: the share of the gold evidence that the bank has lost.

    Reads what `evidence_kept` reads, and is 1 minus that.
    """

    def worth(self, share: float) -> float:
        return 1 - share

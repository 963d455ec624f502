"""The reward `citations`: the fraction of retrieved items that the answer cites, as in RMM (arXiv 2503.08026).

It rewards a retriever. The answering module decides on the citations and must be frozen, or it learns to cite
everything.
"""

from __future__ import annotations

from typing import Literal

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.registry import REWARDS


class CitationsOptions(RewardOptions):
    """Options of `citations`."""

    kind: Literal["cited", "evidence"] = "cited"
    """cited: all cited items count, as in RMM (no gold needed); evidence: only those with gold evidence count."""


@REWARDS.register("citations")
class Citations(EpisodeReward[CitationsOptions]):
    """Fraction of the retrieved items that the answer cites; 0 without retrieved items.

    With `kind: evidence` a cited item counts if gold evidence is among its sources; a task without gold evidence is
    unknown. Reads `episode.retrieved` and `episode.citations`, with `kind: evidence` also `task.evidence`.
    """

    def score_of(self, episode: Episode) -> float | None:
        gold = set(episode.task.evidence)
        by_evidence = self.options.kind == "evidence"
        if by_evidence and not gold:
            return None
        if not episode.retrieved:
            return 0.0
        cited = set(episode.citations or ())
        counted = [
            item for item in episode.retrieved if item.id in cited and (not by_evidence or gold & {*item.sources})
        ]
        return len(counted) / len(episode.retrieved)

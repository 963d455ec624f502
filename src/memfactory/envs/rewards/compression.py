"""The reward `compression`: Memory-R2's penalty on a bank that hardly says less than what it was made from."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.formats.render import told
from memfactory.registry import REWARDS


class CompressionOptions(RewardOptions):
    """Options of `compression`."""

    fraction: float = Field(0.7, ge=0)
    """A bank of at most this fraction of the words that were seen costs nothing. Memory-R2 weighs the rest by 0.3."""


@REWARDS.register("compression")
class Compression(RewardFunction[CompressionOptions]):
    """0 for a bank of at most `fraction` of the words seen, and minus what it has more, as a share of those seen.

    With B words in the bank and T seen: -max(0, B - share T) / T (arXiv 2605.21768), 0 where nothing was seen. A word
    is what stands between spaces, so the penalty needs no tokenizer. Seen are the conversation (or text) and the items
    that were there before it. Reads `episode.bank` (key and value of its items) and the task.
    """

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [self._score(episode) for episode in episodes]

    def _score(self, episode: Episode) -> float:
        task = episode.task
        heard = sum(len(turn.text.split()) for turn in told(task))
        seen = heard + sum(len(item.text.split()) for item in task.memory)
        items = () if episode.bank is None else episode.bank.list()
        kept = sum(len(item.text.split()) for item in items)
        return min(0.0, self.options.fraction * seen - kept) / seen if seen else 0.0

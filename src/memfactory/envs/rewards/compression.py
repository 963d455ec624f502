"""The reward `compression`: Memory-R2's penalty on a bank that is hardly shorter than its conversation."""

from __future__ import annotations

from pydantic import Field

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import EpisodeReward
from memfactory.episode import Episode
from memfactory.formats.render import utterances_of
from memfactory.registry import REWARDS


class CompressionOptions(RewardOptions):
    """Options of `compression`."""

    fraction: float = Field(0.7, ge=0)
    """The size of a bank without penalty, as a fraction of the words read. Memory-R2 weighs the penalty by 0.3."""


@REWARDS.register("compression")
class Compression(EpisodeReward[CompressionOptions]):
    """Penalty on a bank of more than `fraction` of the words read: minus the excess, as a fraction of the words read.

    With B words in the bank and T words read: -max(0, B - fraction T) / T (arXiv 2605.21768); 0 if nothing was read.
    Words are separated by spaces, so the penalty needs no tokenizer. The words read are those of the conversation (or
    text) and of the initial bank. Reads `episode.bank` (key and value of its items) and the task.
    """

    def score_of(self, episode: Episode) -> float:
        task = episode.task
        conversation = sum(len(turn.text.split()) for turn in utterances_of(task))
        read = conversation + sum(len(item.text.split()) for item in task.memory)
        items = () if episode.bank is None else episode.bank.list()
        bank = sum(len(item.text.split()) for item in items)
        return min(0.0, self.options.fraction * read - bank) / read if read else 0.0

"""MemoryAgent: MemAgent's agent, one recurrent memory module from the first section to the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from memfactory.dialogue import Agent, Dialogue
from memfactory.episode import Episode
from memfactory.registry import AGENTS


@AGENTS.register("memory_agent")
class MemoryAgent(Agent):
    """Reads a long text into a fixed-size memory and answers from it."""

    slots: ClassVar[Mapping[str, str]] = {"memory": "recurrent_memory"}

    def dialogue(self, episode: Episode) -> Dialogue:
        yield from self.modules["memory"].play(episode)

"""The baseline `no_memory`: the question alone, which measures guessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memfactory.dialogue import Agent, Dialogue
from memfactory.episode import Episode
from memfactory.registry import AGENTS


@AGENTS.register("no_memory")
class NoMemory(Agent):
    """Answers from an empty memory."""

    slots: ClassVar[Mapping[str, str]] = {"answerer": "answer"}

    def dialogue(self, episode: Episode) -> Dialogue[Any]:
        yield from self.modules["answerer"].play(episode, ())

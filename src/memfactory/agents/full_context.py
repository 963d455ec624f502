"""The baseline `full_context`: the whole conversation in one prompt, no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memfactory.dialogue import Agent, Dialogue
from memfactory.episode import Episode
from memfactory.registry import AGENTS


@AGENTS.register("full_context")
class FullContext(Agent):
    """Answers from the whole conversation in one prompt."""

    slots: ClassVar[Mapping[str, str]] = {"answerer": "full_context_answer"}

    def dialogue(self, episode: Episode) -> Dialogue[Any]:
        yield from self.modules["answerer"].play(episode)

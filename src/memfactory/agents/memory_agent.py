"""MemoryAgent: MemAgent's agent, one recurrent memory module from the first chunk to the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memfactory.dialogue import Agent, Ask, Dialogue
from memfactory.episode import Episode
from memfactory.registry import AGENTS


@AGENTS.register("memory_agent")
class MemoryAgent(Agent):
    """Reads a long text into a fixed-size memory and answers from it."""

    slots: ClassVar[Mapping[str, str]] = {"memory": "recurrent_memory"}

    def dialogue(self, episode: Episode) -> Dialogue[Any]:
        yield from self.modules["memory"].play(episode)

    def read(self, episode: Episode) -> Dialogue[Any] | None:
        """Read the text for the task's question and stop before the answer."""
        return self._until_answer(episode) if self.modules["memory"].answers_last else None

    def _until_answer(self, episode: Episode) -> Dialogue[Any]:
        module = self.modules["memory"]
        playing = module.play(episode)
        request = next(playing)
        while isinstance(request, Ask) and request.step != module.steps[-1]:
            reply = yield request
            request = playing.send(reply)
        playing.close()

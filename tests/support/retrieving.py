"""An agent that only retrieves, for tests of retrievers."""

from memfactory.dialogue import Agent, Dialogue
from memfactory.episode import Episode


class Retrieving(Agent):
    """Retrieves and stops."""

    def dialogue(self, episode: Episode) -> Dialogue:
        episode.bank = self.banks.open(episode.task.memory)
        yield from self.modules["retriever"].play(episode, episode.bank)

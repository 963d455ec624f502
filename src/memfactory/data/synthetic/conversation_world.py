"""Utterances of the fact world's people: facts about themselves, changes of these facts, and chit-chat.

Each fact has a sentence for a memory and two questions: a plain one, with the sentence's own verb, and a paraphrase,
which shares no word with the sentence but the person and little words such as "the". Text only, and pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from memfactory.data.synthetic.fact_world import FILLER, RELATIONS, Split, split_of


@dataclass(frozen=True)
class Topic:
    """A kind of fact: its verb in the third and first person, two questions, and its possible values."""

    words: str
    first_person: str
    question: str
    paraphrase: str
    values: tuple[str, ...]


CITIES, ANIMALS, COLOURS, INSTRUMENTS = (RELATIONS[key].values for key in ("city", "animal", "colour", "instrument"))
TOPICS: dict[str, Topic] = {
    "home": Topic("lives in", "live in", "Where does {} live?", "What is the home of {}?", CITIES),
    "origin": Topic("stems from", "stem from", "Where does {} stem from?", "What is the birthplace of {}?", CITIES),
    "work": Topic("teaches in", "teach in", "Where does {} teach?", "What is the workplace of {}?", CITIES),
    "pet": Topic("keeps a", "keep a", "Which animal does {} keep?", "What is the pet of {}?", ANIMALS),
    "fear": Topic("fears the", "fear the", "Which animal does {} fear?", "What is the nightmare of {}?", ANIMALS),
    "prey": Topic("hunts the", "hunt the", "Which animal does {} hunt?", "What is the prey of {}?", ANIMALS),
    "paint": Topic("paints in", "paint in", "Which colour does {} paint in?", "What is the palette of {}?", COLOURS),
    "dress": Topic("dresses in", "dress in", "Which colour does {} dress in?", "What is the outfit of {}?", COLOURS),
    "music": Topic("plays the", "play the", "Which instrument does {} play?", "What is the hobby of {}?", INSTRUMENTS),
    "trade": Topic("mends the", "mend the", "Which instrument does {} mend?", "What is the trade of {}?", INSTRUMENTS),
}
CHANGED = "now"


@dataclass(frozen=True)
class State:
    """A fact about `person` at some time: `topic` (a key of TOPICS) has `value`."""

    person: str
    topic: str
    value: str

    @property
    def sentence(self) -> str:
        """The state as the sentence of a memory."""
        return f"{self.person} {TOPICS[self.topic].words} {self.value}."

    def utterance(self, changed: bool = False) -> str:
        """The state in the person's own words: stated for the first time, or as a change."""
        ending = f" {CHANGED}." if changed else "."
        return f"I {TOPICS[self.topic].first_person} {self.value}{ending}"

    def question(self, paraphrased: bool = False) -> str:
        """The question about the value."""
        topic = TOPICS[self.topic]
        return (topic.paraphrase if paraphrased else topic.question).format(self.person)

    @property
    def split(self) -> Split:
        """The split that may state it, as for a Fact with the same sentence."""
        return split_of(self.sentence)


def draw_state(random: Random, person: str, topic: str, split: Split, other_than: str | None = None) -> State:
    """A random state of `split` with a value other than `other_than`."""
    while True:
        state = State(person, topic, random.choice(TOPICS[topic].values))
        if state.split == split and state.value != other_than:
            return state


def draw_states(random: Random, people: list[str], count: int, split: Split) -> list[State]:
    """`count` random states of these people, each of another person or topic."""
    pairs = random.sample([(person, topic) for person in people for topic in TOPICS], count)
    return [draw_state(random, person, topic, split) for person, topic in pairs]


def draw_chat(random: Random) -> str:
    """A random utterance that is not worth remembering."""
    return random.choice(FILLER)

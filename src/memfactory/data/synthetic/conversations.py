"""The dataset `conversations`: people state facts about themselves, change them, and chat; a question asks about one.

Rows are for the environments of memory banks. Row number i depends only on the options and i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from pydantic import Field, model_validator

from memfactory.data.synthetic.conversation_world import TOPICS, State, draw_chat, draw_state, draw_states
from memfactory.data.synthetic.fact_world import NAMES
from memfactory.data.synthetic.generated import GeneratedDataset, GeneratedOptions, WorldOptions
from memfactory.registry import DATASETS

SPEAKERS = 2
SIZES: dict[str, dict[str, object]] = {
    "tuple": {"items": 5, "sessions": 1, "kept": 0.25},
    "replay": {"items": 0, "sessions": 4, "kept": 0.0},
    "rerank": {"items": 20, "sessions": 0, "kept": 1.0, "people": 2, "paraphrased": 1.0},
}
Category = Literal["new", "changed", "kept"]


class ConversationOptions(WorldOptions):
    """Options of the conversations."""

    form: Literal["tuple", "replay", "rerank"] = "tuple"
    """tuple: a small bank and one session; replay: an empty bank and several sessions; rerank: a large bank and no
    conversation. The form sets the defaults of the sizes below."""
    items: int = Field(5, ge=0)
    """Items of the initial bank."""
    sessions: int = Field(1, ge=0)
    """Sessions of the conversation."""
    utterances: int = Field(3, ge=1)
    """Utterances in a session."""
    facts: int = Field(1, ge=1)
    """Utterances in a session that state a fact; the others are chit-chat."""
    people: int = Field(2, ge=SPEAKERS, le=len(NAMES))
    """People in the bank; two of them speak in the conversation."""
    changes: float = Field(0.5, ge=0, le=1)
    """Probability that a stated fact changes a known one."""
    kept: float = Field(0.25, ge=0, le=1)
    """Fraction of rows with a question about an item of the bank that the conversation does not change."""
    paraphrased: float = Field(0.0, ge=0, le=1)
    """Fraction of questions that are paraphrases: only the person's name also occurs in the fact."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_form(cls, values: Any) -> Any:
        form = values.get("form", "tuple") if isinstance(values, dict) else None
        return {**SIZES[form], **values} if form in SIZES else values

    @model_validator(mode="after")
    def _parts_fit(self) -> ConversationOptions:
        if self.facts > self.utterances:
            raise ValueError(f"facts is {self.facts}, but a session has only {self.utterances} utterances")
        known, most = self.items + self.sessions * self.facts, self.people * len(TOPICS)
        if self.items > most:
            raise ValueError(f"items is {self.items}; there are only {most} facts about {self.people} people")
        if known > most or self.sessions * self.facts > SPEAKERS * len(TOPICS):
            raise ValueError(
                f"items + sessions x facts is {known}; {self.people} people of whom {SPEAKERS} speak have {most} facts"
            )
        if not known:
            raise ValueError("there is nothing to ask about: items and sessions are both 0")
        return self


class ConversationsOptions(GeneratedOptions, ConversationOptions):
    """Options of `conversations`."""


@dataclass(frozen=True)
class Remark:
    """An utterance, with the state that it expresses; None for chit-chat."""

    id: str
    speaker: str
    text: str
    state: State | None = None


@dataclass(frozen=True)
class Known:
    """An item of the initial bank, and the id of the utterance that it came from."""

    state: State
    source: str


@dataclass(frozen=True)
class Story:
    """A bank, the conversation after it, and a question about `target`, a state at its end."""

    bank: tuple[Known, ...]
    sessions: tuple[tuple[Remark, ...], ...]
    target: State
    evidence: str
    category: Category
    paraphrased: bool

    @property
    def question(self) -> str:
        """The question about the story."""
        return self.target.question(self.paraphrased)


def draw_story(options: ConversationOptions, random: Random) -> Story:
    """A random story with these options."""
    people = random.sample(NAMES, options.people)
    bank = tuple(
        Known(state, f"D0:{number}")
        for number, state in enumerate(draw_states(random, people, options.items, options.split), 1)
    )
    states = {_place(known.state): known.state for known in bank}
    origins = {_place(known.state): known.source for known in bank}
    categories: dict[tuple[str, str], Category] = dict.fromkeys(states, "kept")
    sessions = []
    for number in range(1, options.sessions + 1):
        sessions.append(_session(random, options, people[:SPEAKERS], states, number))
        for remark in sessions[-1]:
            if remark.state is not None:
                place = _place(remark.state)
                categories[place] = "changed" if place in states else "new"
                states[place], origins[place] = remark.state, remark.id
    old = [place for place in states if categories[place] == "kept"]
    new = [place for place in states if categories[place] != "kept"]
    place = random.choice(old if not new or (old and random.random() < options.kept) else new)
    paraphrased = random.random() < options.paraphrased
    return Story(bank, tuple(sessions), states[place], origins[place], categories[place], paraphrased)


def _place(state: State) -> tuple[str, str]:
    return state.person, state.topic


def _session(
    random: Random,
    options: ConversationOptions,
    speakers: Sequence[str],
    states: dict[tuple[str, str], State],
    number: int,
) -> tuple[Remark, ...]:
    """One session of the speakers: new facts and changes of those in `states`, among chit-chat."""
    stating = set(random.sample(range(options.utterances), options.facts))
    stated: set[tuple[str, str]] = set()
    turns = []
    for turn in range(options.utterances):
        id = f"D{number}:{turn + 1}"
        if turn not in stating:
            turns.append(Remark(id, random.choice(speakers), draw_chat(random)))
            continue
        places = [(person, topic) for person in speakers for topic in TOPICS if (person, topic) not in stated]
        known = [place for place in places if place in states]
        fresh = [place for place in places if place not in states]
        place = random.choice(known if not fresh or (known and random.random() < options.changes) else fresh)
        stated.add(place)
        old = states.get(place)
        state = draw_state(random, *place, options.split, None if old is None else old.value)
        turns.append(Remark(id, place[0], state.utterance(changed=old is not None), state))
    return tuple(turns)


@DATASETS.register("conversations")
class ConversationsDataset(GeneratedDataset[ConversationsOptions]):
    """Generated conversations in which people state and change facts about themselves, with questions about them."""

    @property
    def source(self) -> str:
        return f"conversations ({self.options.form}, {self.options.split})"

    def values(self, index: int) -> dict[str, object]:
        options = self.options
        story = draw_story(options, Random(f"conversation {options.form} {options.seed} {options.split} {index}"))
        return {
            "memory": [
                {"id": f"m{number}", "key": one.state.person, "value": one.state.sentence, "sources": [one.source]}
                for number, one in enumerate(story.bank, 1)
            ],
            "conversation": [
                {"speaker": remark.speaker, "text": remark.text, "dia_id": remark.id, "session": str(number)}
                for number, session in enumerate(story.sessions, 1)
                for remark in session
            ],
            "question": story.question,
            "answer": story.target.value,
            "evidence": [story.evidence],
            "category": story.category,
            "index": index,
        }

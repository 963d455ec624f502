"""The dataset `conversations`: people tell facts about themselves, change them, and chat; a question asks about one.

Rows are what the environments of memory banks read. Row number i depends only on the options and i. It does not know
how a conversation is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from pydantic import Field, model_validator

from memfactory.data.base import Dataset, DatasetOptions, GeneratedRows, Row
from memfactory.data.synthetic.conversation_world import TOPICS, State, draw_chat, draw_state, draw_states
from memfactory.data.synthetic.fact_world import NAMES, Split
from memfactory.registry import DATASETS, Options

SPEAKERS = 2
SIZES: dict[str, dict[str, object]] = {
    "tuple": {"items": 5, "sessions": 1, "kept": 0.25},
    "replay": {"items": 0, "sessions": 4, "kept": 0.0},
    "rerank": {"items": 20, "sessions": 0, "kept": 1.0, "people": 2, "paraphrased": 1.0},
}
Category = Literal["new", "changed", "kept"]


class ConversationOptions(Options):
    """What the conversations are like."""

    seed: int = 0
    """Seed of the rows."""
    split: Split = "train"
    """train or heldout: a quarter of all facts that could be stated occurs only in held-out rows."""
    form: Literal["tuple", "replay", "rerank"] = "tuple"
    """tuple: a bank of some items and one sitting; replay: an empty bank and several sittings; rerank: a large bank and
    nothing said. The sizes below that are not given are as the form has them."""
    items: int = Field(5, ge=0)
    """Items of the bank at the start."""
    sessions: int = Field(1, ge=0)
    """Sittings of the conversation."""
    utterances: int = Field(3, ge=1)
    """Utterances of a sitting."""
    facts: int = Field(1, ge=1)
    """Utterances of a sitting that state a fact; the others are chit-chat."""
    people: int = Field(2, ge=SPEAKERS, le=len(NAMES))
    """People whom the bank knows; two of them speak."""
    changes: float = Field(0.5, ge=0, le=1)
    """How often a fact that is stated changes one that is known already."""
    kept: float = Field(0.25, ge=0, le=1)
    """Share of rows that ask about an item of the bank which the conversation leaves as it is."""
    paraphrased: float = Field(0.0, ge=0, le=1)
    """Share of questions that share no word with the fact but the person."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_form(cls, values: Any) -> Any:
        form = values.get("form", "tuple") if isinstance(values, dict) else None
        return {**SIZES[form], **values} if form in SIZES else values

    @model_validator(mode="after")
    def _parts_fit(self) -> ConversationOptions:
        if self.facts > self.utterances:
            raise ValueError(f"facts is {self.facts}, but a sitting has only {self.utterances} utterances")
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


class ConversationsOptions(DatasetOptions, ConversationOptions):
    """Options of `conversations`."""

    rows: int = Field(1000, ge=1)
    """How many rows there are."""


@dataclass(frozen=True)
class Said:
    """An utterance; `state` is what it states, None for chit-chat."""

    id: str
    speaker: str
    text: str
    state: State | None = None


@dataclass(frozen=True)
class Known:
    """An item of the bank at the start, and the utterance that it once came from."""

    state: State
    source: str


@dataclass(frozen=True)
class Story:
    """A bank, what is then said, and a question about what is so in the end."""

    bank: tuple[Known, ...]
    sessions: tuple[tuple[Said, ...], ...]
    asked: State
    evidence: str
    category: Category
    paraphrased: bool

    @property
    def question(self) -> str:
        return self.asked.question(self.paraphrased)


def draw_story(options: ConversationOptions, random: Random) -> Story:
    """A story under `options`."""
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
        sessions.append(_sitting(random, options, people[:SPEAKERS], states, number))
        for said in sessions[-1]:
            if said.state is not None:
                place = _place(said.state)
                categories[place] = "changed" if place in states else "new"
                states[place], origins[place] = said.state, said.id
    kept = [place for place in states if categories[place] == "kept"]
    told = [place for place in states if categories[place] != "kept"]
    place = random.choice(kept if not told or (kept and random.random() < options.kept) else told)
    paraphrased = random.random() < options.paraphrased
    return Story(bank, tuple(sessions), states[place], origins[place], categories[place], paraphrased)


def _place(state: State) -> tuple[str, str]:
    return state.person, state.topic


def _sitting(
    random: Random,
    options: ConversationOptions,
    speakers: Sequence[str],
    states: dict[tuple[str, str], State],
    number: int,
) -> tuple[Said, ...]:
    """One sitting in which the speakers state facts that are not in `states`, or otherwise, among chit-chat."""
    stating = set(random.sample(range(options.utterances), options.facts))
    stated: set[tuple[str, str]] = set()
    turns = []
    for turn in range(options.utterances):
        said = f"D{number}:{turn + 1}"
        if turn not in stating:
            turns.append(Said(said, random.choice(speakers), draw_chat(random)))
            continue
        places = [(person, topic) for person in speakers for topic in TOPICS if (person, topic) not in stated]
        known = [place for place in places if place in states]
        fresh = [place for place in places if place not in states]
        place = random.choice(known if not fresh or (known and random.random() < options.changes) else fresh)
        stated.add(place)
        old = states.get(place)
        state = draw_state(random, *place, options.split, None if old is None else old.value)
        turns.append(Said(said, place[0], state.utterance(changed=old is not None), state))
    return tuple(turns)


@DATASETS.register("conversations")
class ConversationsDataset(Dataset[ConversationsOptions]):
    """Generated conversations in which people state and change facts about themselves, with questions about them."""

    @property
    def source(self) -> str:
        return f"conversations ({self.options.form}, {self.options.split})"

    def rows(self) -> Sequence[Row]:
        return GeneratedRows(self._row, min(self.options.rows, self.options.limit or self.options.rows))

    def _row(self, index: int) -> Row:
        options = self.options
        story = draw_story(options, Random(f"conversation {options.form} {options.seed} {options.split} {index}"))
        values = {
            "memory": [
                {"id": f"m{number}", "key": one.state.person, "value": one.state.sentence, "sources": [one.source]}
                for number, one in enumerate(story.bank, 1)
            ],
            "conversation": [
                {"speaker": said.speaker, "text": said.text, "dia_id": said.id, "session": str(number)}
                for number, session in enumerate(story.sessions, 1)
                for said in session
            ],
            "question": story.question,
            "answer": story.asked.value,
            "evidence": [story.evidence],
            "category": story.category,
            "index": index,
        }
        return Row(values, f"{self.source} row {index}")

"""The dataset `facts`: texts that hide facts about people among filler, and a question about one of them.

Row number i depends only on the options and i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from memfactory.data.synthetic.fact_world import MENTOR, NAMES, RELATIONS, Fact, Split, draw_fact, draw_filler, units
from memfactory.data.synthetic.generated import GeneratedDataset, GeneratedOptions, WorldOptions
from memfactory.registry import DATASETS

LONGEST_STATEMENT = 8
ROOM_FOR_FILLER = 8


class DocumentOptions(WorldOptions):
    """Options of the texts."""

    chunks: int = Field(3, ge=1)
    """Chunks of a text."""
    facts_per_chunk: int = Field(4, ge=1)
    """Facts in a chunk, each about another person."""
    chunk_words: int = Field(64, ge=1)
    """Words and punctuation marks of a chunk, filler included (a token each of the embedded model)."""
    corrections: float = Field(0.0, ge=0, le=1)
    """Fraction of rows in which a later chunk corrects the fact in question."""
    two_hops: float = Field(0.0, ge=0, le=1)
    """Fraction of rows with a question about somebody's mentor, which needs two facts."""
    one_relation: float = Field(0.0, ge=0, le=1)
    """Fraction of rows with facts of one kind only (such as where people live), which differ by the person alone."""

    @model_validator(mode="after")
    def _parts_fit(self) -> DocumentOptions:
        people = self.chunks * self.facts_per_chunk
        if people > len(NAMES):
            raise ValueError(
                f"chunks x facts_per_chunk is {people}, but there are only {len(NAMES)} people to state facts about"
            )
        if self.corrections + self.two_hops > 1:
            raise ValueError(f"corrections + two_hops is {self.corrections + self.two_hops:g}, more than all rows")
        if self.corrections and self.chunks < 2:
            raise ValueError("corrections need at least 2 chunks: they come in a later one")
        if self.two_hops and people < 2:
            raise ValueError("two_hops need at least 2 people")
        statements = self.facts_per_chunk + (2 if self.corrections else 0)
        least = statements * LONGEST_STATEMENT + ROOM_FOR_FILLER
        if self.chunk_words < least:
            raise ValueError(f"chunk_words is {self.chunk_words}; {statements} statements need at least {least}")
        return self


class FactsOptions(GeneratedOptions, DocumentOptions):
    """Options of `facts`."""


@dataclass(frozen=True)
class Statement:
    """A fact in a text, stated for the first time or as a correction."""

    fact: Fact
    corrects: bool = False

    @property
    def sentence(self) -> str:
        """The statement as a sentence."""
        return self.fact.correction if self.corrects else self.fact.sentence


@dataclass(frozen=True)
class Document:
    """A text in chunks, and the question.

    `statements` are in the order of the text. `hops` are the people to look up: the one in the question, and their
    mentor if the question is about the mentor.
    """

    statements: tuple[tuple[Statement, ...], ...]
    chunks: tuple[str, ...]
    hops: tuple[str, ...]
    question: str
    answer: str


def draw_document(options: DocumentOptions, index: int) -> Document:
    """Document number `index` of a dataset with these options."""
    random = Random(f"{options.seed} {options.split} {index}")
    people = random.sample(NAMES, options.chunks * options.facts_per_chunk)
    relation = random.choice(list(RELATIONS)) if random.random() < options.one_relation else None
    facts = [draw_fact(random, person, options.split, relation) for person in people]
    kind = _kind(random, options)
    if kind == "two_hops":
        first, last = _link(random, facts, options.split)
    elif kind == "correction":
        first = last = random.randrange((options.chunks - 1) * options.facts_per_chunk)
    else:
        first = last = random.randrange(len(facts))
    per = options.facts_per_chunk
    stated = [[Statement(fact) for fact in facts[start : start + per]] for start in range(0, len(facts), per)]
    target = facts[last]
    if kind == "correction":
        target = _correct(random, stated, first // per, facts[first], options.split)
        _correct_another(random, stated, facts, first, options)
    for statements in stated:
        random.shuffle(statements)
    hops = (people[first],) if first == last else (people[first], people[last])
    subject = people[first] if first == last else f"{people[first]}'s mentor"
    return Document(
        statements=tuple(map(tuple, stated)),
        chunks=tuple(_chunk(random, statements, options.chunk_words) for statements in stated),
        hops=hops,
        question=RELATIONS[target.relation].question.format(subject),
        answer=target.value,
    )


def _kind(random: Random, options: DocumentOptions) -> Literal["plain", "two_hops", "correction"]:
    number = random.random()
    if number < options.two_hops:
        return "two_hops"
    return "correction" if number < options.two_hops + options.corrections else "plain"


def _link(random: Random, facts: list[Fact], split: Split) -> tuple[int, int]:
    """Replace the facts of one or two people by their mentors; returns the places of the first pair.

    A mentor comes later in the text than the person, or in the same chunk, which is shuffled. A mentor has no mentor,
    so that a question has two hops and not three.
    """
    places = list(range(len(facts)))
    pairs: list[tuple[int, int]] = []
    for _ in range(2):
        open_pairs = [
            (a, b)
            for a in places
            for b in places
            if a < b and Fact(facts[a].person, MENTOR, facts[b].person).split == split
        ]
        if open_pairs:
            pair = random.choice(open_pairs)
            pairs.append(pair)
            places = [place for place in places if place not in pair]
    if not pairs:
        # No pair of these people is in this split; the question is about the first person alone.
        return 0, 0
    for a, b in pairs:
        facts[a] = Fact(facts[a].person, MENTOR, facts[b].person)
    return pairs[0]


def _correct(random: Random, stated: list[list[Statement]], chunk: int, fact: Fact, split: Split) -> Fact:
    """Correct `fact`, stated in chunk number `chunk`, in a later chunk; returns the new fact."""
    new = fact
    while new.value == fact.value:
        new = draw_fact(random, fact.person, split, fact.relation)
    stated[random.randrange(chunk + 1, len(stated))].append(Statement(new, corrects=True))
    return new


def _correct_another(
    random: Random, stated: list[list[Statement]], facts: list[Fact], target: int, options: DocumentOptions
) -> None:
    """Correct another fact too, so that a correction alone does not give the answer away."""
    per = options.facts_per_chunk
    others = [place for place in range((options.chunks - 1) * per) if place != target]
    if others:
        place = random.choice(others)
        _correct(random, stated, place // per, facts[place], options.split)


def _chunk(random: Random, statements: Sequence[Statement], size: int) -> str:
    """A chunk of `size` units: the statements among filler. The first sentence is filler."""
    filler = draw_filler(random, size - sum(units(statement.sentence) for statement in statements))
    opening, rest = filler[0], filler[1:]
    places = sorted(random.sample(range(len(rest) + len(statements)), len(statements)))
    remaining = iter(rest)
    by_place = dict(zip(places, statements, strict=True))
    body = [by_place[i].sentence if i in by_place else next(remaining) for i in range(len(rest) + len(statements))]
    return " ".join([opening, *body])


@DATASETS.register("facts")
class FactsDataset(GeneratedDataset[FactsOptions]):
    """Generated questions about people whose facts are hidden among filler in a text."""

    @property
    def source(self) -> str:
        return f"facts ({self.options.split})"

    def values(self, index: int) -> dict[str, object]:
        document = draw_document(self.options, index)
        return {
            "context": " ".join(document.chunks),
            "input": document.question,
            "answers": [document.answer],
            "num_docs": len(document.chunks),
            "index": index,
        }

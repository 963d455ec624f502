"""A small world of people and plain facts about them: names, relations, values, filler. Text only, and pure.

Every fact is one sentence. A quarter of all possible facts is held out, so that a model can be tested on facts that it
never saw in training.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Literal

Split = Literal["train", "heldout"]
HELD_OUT_ONE_IN = 4
MENTOR = "mentor"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: tuple[str, ...] = _words(
    """Ada Boris Chen Dora Elif Felix Greta Hugo Ines Jonas Kira Leon Mira Nadia Otto Petra Quinn Rosa Sven Tara Uma
    Viktor Wanda Xenia Yusuf Zoe Amir Bella Carlo Delia Emil Freya Gavin Hanna Igor Julia Klaus Lydia Marco Nora Oscar
    Paula Ravi Selma Tomas Ursula Vera Willem Yara Zeno Anton Bruno Clara Diego Edith Flora Gustav Heidi Irene Jasper
    Karin Lukas Maya Nils"""
)


@dataclass(frozen=True)
class Relation:
    """A kind of fact: the words between person and value, the question, and the possible values."""

    words: str
    question: str
    values: tuple[str, ...]


RELATIONS: dict[str, Relation] = {
    "city": Relation(
        "lives in",
        "Where does {} live?",
        _words("""Oslo Rome Lima Paris Cairo Delhi Tokyo Berlin Madrid Lisbon Vienna Prague Dublin Athens Warsaw Havana
            Quito Seoul Hanoi Milan Porto Basel Turin Lagos Nairobi Tunis Dakar Perth Boston Denver Austin
            Geneva"""),
    ),
    "animal": Relation(
        "keeps a",
        "Which animal does {} keep?",
        _words("""heron badger falcon donkey rabbit turtle parrot lizard camel goat spider hamster pigeon beaver dolphin
            rooster salmon walrus bison cobra ferret gecko jackal koala lemur moth newt panda quail raven seal
            toad"""),
    ),
    "colour": Relation(
        "paints in",
        "Which colour does {} paint in?",
        _words("""teal crimson indigo scarlet violet amber azure beige bronze coral cyan emerald fuchsia golden green
            ivory jade khaki lilac magenta maroon navy ochre olive orange pink purple red silver tan turquoise
            white"""),
    ),
    "instrument": Relation(
        "plays the",
        "Which instrument does {} play?",
        _words("""cello banjo flute guitar harp lute oboe piano trumpet tuba viola violin zither bassoon bugle clarinet
            cornet drum fiddle gong horn kazoo mandolin lyre organ recorder sitar tambourine trombone triangle ukulele
            whistle"""),
    ),
}

FILLER: tuple[str, ...] = (
    "Snow fell again.",
    "Nobody spoke then.",
    "It was late.",
    "The light went out.",
    "All was calm there.",
    "The market closed early.",
    "The bread was still warm.",
    "A door stood wide open.",
    "More rain came that night.",
    "Dinner was served at eight.",
    "The shop opened late that day.",
    "A cold wind came from outside.",
    "It was quiet in the garden.",
    "Leaves lay all over the path.",
    "The rain fell on the old roof.",
    "Someone had left the big gate open.",
    "The road to the coast was closed.",
    "The river was high after the long storm.",
    "They spoke about the weather for a while.",
    "The clock in the hall had stopped again.",
)
CORRECTION = "Correction:"
_UNITS = re.compile(r"'s|\w+|[^\w\s]")


@dataclass(frozen=True)
class Fact:
    """A fact: `person` has the `relation` (a key of RELATIONS, or MENTOR) to `value`."""

    person: str
    relation: str
    value: str

    @property
    def sentence(self) -> str:
        """The fact as one sentence."""
        if self.relation == MENTOR:
            return f"{self.person}'s mentor is {self.value}."
        return f"{self.person} {RELATIONS[self.relation].words} {self.value}."

    @property
    def correction(self) -> str:
        """The fact as the sentence that corrects an earlier one."""
        return f"{CORRECTION} {self.person} now {RELATIONS[self.relation].words} {self.value}."

    @property
    def split(self) -> Split:
        """The split that may state this fact: a fixed quarter of all facts is held out."""
        return split_of(self.sentence)


def split_of(sentence: str) -> Split:
    """The split that may state a fact with this sentence."""
    digest = blake2b(sentence.encode(), digest_size=4).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0 else "train"


def units(text: str) -> int:
    """Words and punctuation marks of `text`: its length in tokens of the embedded model."""
    return len(_UNITS.findall(text))


def draw_fact(random: Random, person: str, split: Split, relation: str | None = None) -> Fact:
    """A random fact of `split` about `person`, of `relation` (None: a random one)."""
    relation = relation or random.choice(list(RELATIONS))
    while True:
        fact = Fact(person, relation, random.choice(RELATIONS[relation].values))
        if fact.split == split:
            return fact


def draw_filler(random: Random, size: int) -> list[str]:
    """Random filler sentences of exactly `size` units together. Raises ValueError if no sentences add up to it."""
    lengths = {units(sentence) for sentence in FILLER}
    if 0 < size < min(lengths):
        raise ValueError(f"no filler has {size} words and marks; the shortest has {min(lengths)}")
    chosen: list[str] = []
    while size:
        fitting = [s for s in FILLER if units(s) == size or size - units(s) >= min(lengths)]
        chosen.append(random.choice(fitting))
        size -= units(chosen[-1])
    return chosen

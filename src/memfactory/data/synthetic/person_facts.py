"""Facts about people for texts of real prose: attributes whose values are numbers and names. Text only, and pure.

As in `fact_world`, a quarter of all possible facts is held out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from memfactory.data.synthetic.fact_world import RELATIONS, Split, split_of

_NUMBERS = tuple(str(number) for number in range(100, 1000))
_SURNAMES = tuple(
    re.findall(
        r"\w+",
        """Novak Fischer Moreau Rossi Larsen Kowalski Haddad Okafor Tanaka Silva Petrov Jansen Costa Weber Nilsson
    Cohen Sato Ortiz Dubois Keller Varga Lindgren Horvat Baker Mancini Popescu Schmidt Castillo Virtanen Bauer
    Novotny Murphy""",
    )
)


@dataclass(frozen=True)
class Attribute:
    """A kind of fact: the question, with {} for the person, and the possible values."""

    question: str
    values: tuple[str, ...]


ATTRIBUTES: Mapping[str, Attribute] = MappingProxyType(
    {
        "bus line": Attribute("What is {}'s bus line?", _NUMBERS),
        "locker number": Attribute("What is {}'s locker number?", _NUMBERS),
        "room number": Attribute("What is {}'s room number?", _NUMBERS),
        "ticket number": Attribute("What is {}'s ticket number?", _NUMBERS),
        "dentist": Attribute("Who is {}'s dentist?", _SURNAMES),
        "piano teacher": Attribute("Who is {}'s piano teacher?", _SURNAMES),
        "home town": Attribute("What is {}'s home town?", RELATIONS["city"].values),
        "favourite colour": Attribute("What is {}'s favourite colour?", RELATIONS["colour"].values),
    }
)


@dataclass(frozen=True)
class PersonFact:
    """A fact: the `attribute` (a key of ATTRIBUTES) of `person` is `value`.

    >>> PersonFact("Anna", "bus line", "204").sentence
    "Anna's bus line is 204."
    """

    person: str
    attribute: str
    value: str

    @property
    def sentence(self) -> str:
        """The fact as one sentence."""
        return f"{self.person}'s {self.attribute} is {self.value}."

    @property
    def correction(self) -> str:
        """The fact as the sentence that corrects an earlier one."""
        return f"{self.person}'s {self.attribute} is now {self.value}."

    @property
    def question(self) -> str:
        """The question that the fact answers."""
        return ATTRIBUTES[self.attribute].question.format(self.person)

    @property
    def split(self) -> Split:
        """The split that may state this fact: a fixed quarter of all facts is held out."""
        return split_of(self.sentence)


def draw_person_fact(
    random: Random, person: str, split: Split, attributes: Sequence[str], other_than: str | None = None
) -> PersonFact:
    """A random fact of `split` about `person` with one of `attributes`, whose value is not `other_than`."""
    attribute = random.choice(list(attributes))
    while True:
        fact = PersonFact(person, attribute, random.choice(ATTRIBUTES[attribute].values))
        if fact.split == split and fact.value != other_than:
            return fact

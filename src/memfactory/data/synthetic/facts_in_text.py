"""The dataset `facts_in_text`: facts about people in paragraphs of real prose, and a question about one of them.

Row number i depends only on the options, the text and i. Rows of the two splits share no article and no fact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random

from pydantic import Field, model_validator

from memfactory.data.prose import Article, of_split, read_articles
from memfactory.data.synthetic.fact_world import NAMES, Split
from memfactory.data.synthetic.generated import GeneratedDataset, GeneratedOptions, WorldOptions
from memfactory.data.synthetic.person_facts import ATTRIBUTES, PersonFact, draw_person_fact
from memfactory.errors import DataError
from memfactory.files.places import expanded
from memfactory.registry import DATASETS

STATEMENT_WORDS = 6
"""The most words of a stated fact: "Anna's ticket number is now 204."."""
FULL = 0.85
"""A paragraph is full with this fraction of the words that it may have."""
LEAST_PROSE = 20
"""The fewest words of prose in a paragraph."""

_FACT = re.compile(rf"\b(?:{'|'.join(NAMES)})'s (?:{'|'.join(ATTRIBUTES)}) is\b")


class FactsInTextOptions(GeneratedOptions, WorldOptions):
    """Options of `facts_in_text`."""

    text: str
    """A text or Markdown file, or a folder of them; relative to the working directory, else to the config's folder."""
    paragraphs: int = Field(2, ge=1)
    """Paragraphs of a row's text, each with sentences of one article."""
    paragraph_words: int = Field(80, ge=1)
    """The most words of a paragraph."""
    facts_per_paragraph: int = Field(2, ge=1)
    """Facts in a paragraph, each about another person."""
    distractors: int = Field(0, ge=0, le=len(ATTRIBUTES) - 1)
    """Further facts about the person in question, with other attributes."""
    corrections: float = Field(0.0, ge=0, le=1)
    """Fraction of rows in which a later paragraph changes the value of the fact in question; the newest counts."""

    @model_validator(mode="after")
    def _parts_fit(self) -> FactsInTextOptions:
        people = self.paragraphs * self.facts_per_paragraph
        if people > len(NAMES):
            raise ValueError(f"paragraphs x facts_per_paragraph is {people}, but there are only {len(NAMES)} people")
        if self.corrections and self.paragraphs < 2:
            raise ValueError("corrections need at least 2 paragraphs: they come in a later one")
        statements = self.facts_per_paragraph + self.distractors + (2 if self.corrections else 0)
        least = statements * STATEMENT_WORDS + LEAST_PROSE
        if self.paragraph_words < least:
            raise ValueError(
                f"paragraph_words is {self.paragraph_words}; {statements} statements need at least {least}"
            )
        return self


@dataclass(frozen=True)
class Passage:
    """A row before it is written: paragraphs, question, answer, and the sentences that the answer rests on.

    `evidence` are these sentences in the order of the text, `outdated` those of them that a later one corrects.
    """

    paragraphs: tuple[str, ...]
    question: str
    answer: str
    evidence: tuple[str, ...]
    outdated: tuple[str, ...] = ()


def draw_passage(options: FactsInTextOptions, articles: Sequence[Article], index: int) -> Passage:
    """Row number `index` of a dataset with these options, whose prose comes from `articles`."""
    random = Random(f"facts in text {options.seed} {options.split} {index}")
    per, kinds = options.facts_per_paragraph, list(ATTRIBUTES)
    people = random.sample(NAMES, options.paragraphs * per)
    facts = [draw_person_fact(random, person, options.split, kinds) for person in people]
    stated = [[fact.sentence for fact in facts[start : start + per]] for start in range(0, len(facts), per)]
    corrected = random.random() < options.corrections
    place = random.randrange(len(facts) - per if corrected else len(facts))
    target = facts[place]
    others = [kind for kind in kinds if kind != target.attribute]
    for kind in random.sample(others, options.distractors):
        stated[random.randrange(options.paragraphs)].append(
            draw_person_fact(random, target.person, options.split, [kind]).sentence
        )
    evidence, outdated = [target.sentence], []
    if corrected:
        outdated, target = [target.sentence], _correct(random, stated, place // per, target, options)
        evidence.append(target.correction)
        rest = [other for other in range(len(facts) - per) if other != place]
        if rest:
            # A correction alone must not give the answer away.
            other = random.choice(rest)
            _correct(random, stated, other // per, facts[other], options)
    paragraphs = _paragraphs(random, stated, articles, options.paragraph_words)
    return Passage(paragraphs, target.question, target.value, tuple(evidence), tuple(outdated))


def _correct(
    random: Random, stated: list[list[str]], paragraph: int, fact: PersonFact, options: FactsInTextOptions
) -> PersonFact:
    """Correct `fact`, stated in paragraph number `paragraph`, in a later one; returns the new fact."""
    new = draw_person_fact(random, fact.person, options.split, [fact.attribute], other_than=fact.value)
    stated[random.randrange(paragraph + 1, len(stated))].append(new.correction)
    return new


def _paragraphs(
    random: Random, stated: Sequence[Sequence[str]], articles: Sequence[Article], words: int
) -> tuple[str, ...]:
    """The paragraphs: the statements of each among sentences of an article, each of another one if there are enough.

    The first sentence is prose, so that a fact never opens a paragraph.
    """
    order = cycle(random.sample(articles, len(articles)))
    paragraphs: list[str] = []
    for statements in stated:
        room = words - _words(statements)
        prose: list[str] = []
        for _ in articles:
            prose = max(prose, _excerpt(random, next(order).sentences, room), key=_words)
            if _words(prose) >= FULL * room:
                break
        if not prose:
            raise DataError(f"no article of the text has a sentence of at most {room} words to fill a paragraph with")
        mixed = list(statements)
        random.shuffle(mixed)
        places = sorted(random.randint(1, len(prose)) for _ in mixed)
        for place, statement in reversed(list(zip(places, mixed, strict=True))):
            prose.insert(place, statement)
        paragraphs.append(" ".join(prose))
    return tuple(paragraphs)


def _excerpt(random: Random, sentences: Sequence[str], words: int) -> list[str]:
    """Consecutive sentences of at most `words` words together, from a random place on from which they are full enough,
    else from the place from which they are the longest."""
    longest: list[str] = []
    for start in random.sample(range(len(sentences)), len(sentences)):
        room, chosen = words, []
        for sentence in sentences[start:]:
            room -= len(sentence.split())
            if room < 0:
                break
            chosen.append(sentence)
        longest = max(longest, chosen, key=_words)
        if _words(longest) >= FULL * words:
            break
    return longest


def _words(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def articles_of(path: Path, split: Split) -> tuple[Article, ...]:
    """The articles of `split` in the text at `path`, without sentences that look like a fact of a row.

    Raises DataError if the text cannot be read or has fewer than two articles.
    """
    prose = (
        Article(article.title, tuple(sentence for sentence in article.sentences if not _FACT.search(sentence)))
        for article in of_split(read_articles(path), split)
    )
    return tuple(article for article in prose if article.sentences)


@DATASETS.register("facts_in_text")
class FactsInTextDataset(GeneratedDataset[FactsInTextOptions]):
    """Generated questions about people whose facts are written into paragraphs of real prose."""

    def __init__(self, options: FactsInTextOptions, base_dir: Path) -> None:
        super().__init__(options, base_dir)
        self._articles: tuple[Article, ...] | None = None

    @property
    def source(self) -> str:
        return f"facts_in_text ({self.options.split})"

    @property
    def articles(self) -> tuple[Article, ...]:
        """The articles of the split. Raises DataError if the text cannot be read."""
        if self._articles is None:
            path = expanded(self.options.text)
            beside = self.base_dir / path
            chosen = path if path.exists() or not beside.exists() else beside
            self._articles = articles_of(chosen.resolve(), self.options.split)
        return self._articles

    def values(self, index: int) -> dict[str, object]:
        passage = draw_passage(self.options, self.articles, index)
        outdated = {"outdated": list(passage.outdated)} if passage.outdated else {}
        return {
            "context": "\n\n".join(passage.paragraphs),
            "input": passage.question,
            "answers": [passage.answer],
            "num_docs": len(passage.paragraphs),
            "index": index,
            "evidence": list(passage.evidence),
            **outdated,
        }

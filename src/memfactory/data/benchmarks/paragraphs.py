"""Rows of a question over a few paragraphs: the question's own among those of other articles, in random order.

Training and held-out rows share no article. Row order, distractors and places depend on the seed and the file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from memfactory.data.base import DatasetOptions
from memfactory.data.benchmarks.hotpotqa_source import Document
from memfactory.errors import DataError

Values = dict[str, object]
Heading = Literal["none", "title", "number"]


class ParagraphOptions(DatasetOptions):
    """Options of the datasets with a few paragraphs in each row. `published` says where their files come from."""

    published: ClassVar[str] = ""
    path: str
    """The file; relative to the working directory, else to the config's folder."""
    split: Literal["train", "heldout", "all"] = "train"
    """Training rows, held-out rows, which share no article with them, or all rows of the file."""
    without: str | None = None
    """Another file of the same form: its articles and questions are left out. For a training file and an evaluation
    file of one's own choice, each read with `split: all`."""
    distractors: int = Field(2, ge=0)
    """Paragraphs of other articles in each row."""
    headings: Heading = "title"
    """The line above a paragraph: none, the title of its article, or `Document 1:` and the title, as in MemAgent's
    files."""
    paragraph_words: int | None = Field(None, ge=1)
    """The most words of a paragraph; rows with a longer one of their own are left out, and longer distractors are not
    used. null: any."""
    seed: int = 0
    """Seed of the order of the rows, of the distractors and of the places of paragraphs."""

    def without_effect(self) -> Mapping[str, str]:
        return {"heldout": "split is all"} if self.split == "all" else {}

    def fits(self, text: str) -> bool:
        """Whether a paragraph is short enough."""
        return self.paragraph_words is None or len(text.split()) <= self.paragraph_words


def surrounded(
    own: Sequence[Document], near: Sequence[Document], pool: Sequence[Document], count: int, random: Random
) -> list[Document]:
    """`own` and `count` documents from other articles, in random order: of `near` as far as possible, then of `pool`.

    Raises DataError if there are too few.
    """
    titles, texts = {document.title for document in own}, {document.text for document in own}
    chosen = list(own)
    for document in chain(_in_random_order(near, random), _in_random_order(pool, random)):
        if len(chosen) == len(own) + count:
            break
        if document.title not in titles and document.text not in texts:
            texts.add(document.text)
            chosen.append(document)
    if len(chosen) < len(own) + count:
        raise DataError(
            f"{count} distractors are requested, but only {len(chosen) - len(own)} paragraphs of other articles of the "
            "split can be used; lower `distractors` or raise `paragraph_words`"
        )
    random.shuffle(chosen)
    return chosen


def text_of(documents: Sequence[Document], headings: Heading) -> str:
    """The paragraphs, with an empty line between each two and none inside."""
    return "\n\n".join(_paragraph(number, document, headings) for number, document in enumerate(documents, 1))


def one_line(text: str) -> str:
    """`text` with a space for each line break: places in it stay the same."""
    return " ".join(text.split("\n")).replace("\r", " ")


def _paragraph(number: int, document: Document, headings: Heading) -> str:
    if headings == "none":
        return document.text
    heading = document.title if headings == "title" else f"Document {number}:\n{document.title}"
    return f"{heading}\n{document.text}"


def _in_random_order(pool: Sequence[Document], random: Random) -> Iterator[Document]:
    """The documents of `pool` in random order, drawn one at a time: a row needs few of them."""
    moved: dict[int, int] = {}
    for last in reversed(range(len(pool))):
        place = random.randint(0, last)
        yield pool[moved.get(place, place)]
        moved[place] = moved.get(last, last)

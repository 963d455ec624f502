"""Reads a page: its static parts from the HTML, its sections from the script, its shown text by running the script."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest


class PageReader(HTMLParser):
    """`notes`, `figures` (their names), `rows` of the evaluations, `config` and `sections` of a page's HTML."""

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.notes, self.figures, self.rows, self.config = [], [], [], ""
        match = re.search(r"^const sections = (.*);$", self.html, re.MULTILINE)
        self.sections = json.loads(match.group(1)) if match else []
        self._place = None
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
            self.figures.append(attributes["alt"])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        note = attributes.get("class") == "soft note"
        self._place = "note" if note else attributes.get("id") if tag == "div" else tag
        if note:
            self.notes.append("")

    def handle_endtag(self, tag):
        self._place = None

    def handle_data(self, data):
        if self._place == "note":
            self.notes[-1] += data
        elif self._place == "config":
            self.config += data
        elif self._place in ("td", "th"):
            self.rows[-1][-1] += data

    def episodes(self, section=0):
        return [episode for group in self.sections[section]["groups"] for episode in group["episodes"]]


def shown_text(page: Path) -> str:
    """All text that the page's script shows, first section and every episode; skipped without node."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = Path(__file__).with_name("dom.js")
    done = subprocess.run(["node", script, page], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout

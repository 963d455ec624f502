"""Banks on disk: what is saved is loaded, damage is told, and a kill at any moment leaves the old bank or the new."""

import json
import logging
import os
import subprocess
import sys

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.errors import DataError, MemFactoryError
from memfactory.memory.bank import BankSource, Event
from memfactory.memory.options import LexicalEmbedderConfig, MemoryConfig
from memfactory.types import MemoryItem

ANN = MemoryItem("m2", "job", "Ann is a nurse", "UserMemory", ("work", "Ann"), ("D1:1",), "May", "June", 3, "Ann")


def bank_with_a_past(source=None):
    bank = (source or BankSource()).open([ANN, MemoryItem("x", "", "Bob has a dog")])
    bank.add("naïve 名前 \u2028 \ud800\n")
    bank.add("gone")
    bank.update("x", "Bob has a cat", time="July")
    bank.delete("m3")
    return bank


def file_of(folder, part):
    return folder / json.loads((folder / "manifest.json").read_text())[part]["file"]


def test_a_bank_comes_back_with_its_items_and_its_past(tmp_path):
    bank = bank_with_a_past()
    bank.save(tmp_path / "new" / "bank")
    loaded = BankSource().load(tmp_path / "new" / "bank")
    assert loaded.list() == bank.list()
    for id in ("m1", "m2", "m3", "x"):
        assert loaded.history(id) == bank.history(id)
    assert loaded.history("m3")[-1] == Event(MemoryItem("m3", "", "gone"), None)
    assert loaded.search("Bob", 3) == bank.search("Bob", 3)
    # "m3" was deleted, its id stays used up.
    assert loaded.add("new") == bank.add("new") == "m4"


def joined(text: str) -> str:
    """Both halves of a surrogate pair, side by side, are the one character that they stand for in every file."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


TEXT = st.text(st.characters(codec=None, categories=["L", "Zs", "Zl", "Cc", "Cs", "Nd"]), max_size=8).map(joined)
ITEMS = st.lists(
    st.builds(
        MemoryItem,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        st.lists(TEXT, max_size=2).map(tuple),
        st.lists(TEXT, max_size=2).map(tuple),
        st.none() | TEXT,
        st.none() | TEXT,
        st.integers(1, 10**9),
        TEXT,
    ),
    max_size=4,
    unique_by=lambda item: item.id,
)


@settings(max_examples=50, deadline=None)
@given(items=ITEMS)
def test_any_texts_survive(items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    BankSource().open(items).save(folder)
    assert BankSource().load(folder).list() == items


def test_saving_again_replaces_the_bank_and_leaves_no_old_files(tmp_path):
    bank = bank_with_a_past()
    bank.search("Bob", 1)
    bank.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    bank.delete("x")
    bank.save(tmp_path)
    assert BankSource().load(tmp_path).list() == bank.list()
    names = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert names == ["events", "items", "manifest.json", "notes.txt", "vectors"]


def test_vectors_are_saved_where_they_are_known_and_not_made_again(tmp_path, monkeypatch, caplog):
    bank = bank_with_a_past()
    bank.save(tmp_path)
    assert "vectors" not in json.loads((tmp_path / "manifest.json").read_text())
    found = bank.search("Bob's pet", 3)
    bank.save(tmp_path)
    source = BankSource()
    loaded = source.load(tmp_path)
    source.embed_query("Bob's pet")
    source._texts._embed = None
    assert loaded.search("Bob's pet", 3) == found
    assert caplog.text == ""


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [damaged, os.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_vectors_are_made_anew_with_a_warning(tmp_path, caplog, harm):
    bank = bank_with_a_past()
    found = bank.search("Bob's pet", 3)
    bank.save(tmp_path)
    harm(file_of(tmp_path, "vectors"))
    with caplog.at_level(logging.WARNING, "memfactory"):
        assert BankSource().load(tmp_path).search("Bob's pet", 3) == found
    assert "its vectors cannot be used" in caplog.text


def test_vectors_of_another_embedder_are_made_anew_with_a_warning(tmp_path, caplog):
    bank = bank_with_a_past()
    bank.search("Bob", 1)
    bank.save(tmp_path)
    other = BankSource(MemoryConfig(embedder=LexicalEmbedderConfig(ngrams=())))
    with caplog.at_level(logging.WARNING, "memfactory"):
        loaded = other.load(tmp_path)
    assert "its vectors are of another embedder" in caplog.text
    assert loaded.search("Bob", 3) == bank_with_a_past(other).search("Bob", 3)


@pytest.mark.parametrize("part", ["items", "events"])
@pytest.mark.parametrize(
    ("harm", "told"), [(damaged, "its SHA-256 differs"), (os.unlink, "cannot be read: No such file")]
)
def test_damaged_items_or_events_are_told(tmp_path, part, harm, told):
    bank_with_a_past().save(tmp_path)
    harm(file_of(tmp_path, part))
    with pytest.raises(DataError, match=told):
        BankSource().load(tmp_path)


def test_a_folder_without_a_bank_is_told(tmp_path):
    with pytest.raises(DataError, match=r"holds no memory bank: there is no manifest\.json"):
        BankSource().load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="a memory bank of format 1 is expected, got 2"):
        BankSource().load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        BankSource().load(tmp_path)


def rewritten(folder, part, change):
    """The file of `part` with `change` made to its objects, and the manifest as if it had been saved so."""
    from hashlib import sha256

    path = file_of(folder, part)
    records = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[part]["sha256"] = sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("items", lambda rows: rows[1:], "the items do not match the events"),
        ("items", lambda rows: [{**rows[0], "version": "3"}, *rows[1:]], "line 1: field 'version' .* cannot be '3'"),
        ("items", lambda rows: [{**rows[0], "tags": "x"}, *rows[1:]], "field 'tags' of an item cannot be 'x'"),
        ("items", lambda rows: [{"id": "x"}, *rows[1:]], "an item has the fields id, key, .*, got id"),
        ("items", lambda rows: [[], *rows[1:]], "line 1 should be a JSON object, not list"),
        ("events", lambda rows: [{"id": "y", "item": None}, *rows], "line 1: an event of the item 'y' leads to None"),
        ("events", lambda rows: [{"id": "y", "item": rows[0]["item"]}], "an event of the item 'y' leads to"),
        ("events", lambda rows: [{"id": [], "item": None}], "line 1: an event of the item"),
    ],
)
def test_what_was_changed_by_hand_is_told(tmp_path, part, change, told):
    bank_with_a_past().save(tmp_path)
    rewritten(tmp_path, part, change)
    with pytest.raises(DataError, match=told):
        BankSource().load(tmp_path)


def test_a_disk_that_refuses_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MemFactoryError, match="could not be written"):
        bank_with_a_past().save(tmp_path / "file")


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from memfactory.memory.bank import BankSource
from memfactory.types import Candidate, MemoryItem

folder = Path(sys.argv[1])
source = BankSource()
old = source.open([MemoryItem("x", "", "old")])
new = old.fork()
new.update("x", "new")
new.add("more")
old.search("x", 1), new.search("x", 1)
outcomes = ["new"]
for first in (True, False):
    for step in range(2000):
        if not first and outcomes[-1] == "new":
            old.save(folder)
        child = os.fork()
        if not child:
            seen = 0
            def hook(frame, event, called):
                # Before each call of a built-in function: opening, writing, flushing, renaming, ...
                global seen
                if event == "c_call" and frame.f_code.co_filename.endswith(("persistence.py", "pathlib.py")):
                    if seen == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen += 1
            sys.setprofile(hook)
            new.save(folder)
            os._exit(0)
        finished = os.waitpid(child, 0)[1] == 0
        manifest = (folder / "manifest.json").exists()
        if first and not manifest:
            # There was no bank before.
            outcomes.append("nothing")
        else:
            items = BankSource().load(folder).list()
            outcomes.append("old" if items == old.list() else "new" if items == new.list() else "lost")
        if finished or (first and manifest):
            break
print(*outcomes[1:])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_step_of_saving_leaves_the_old_bank_or_the_new(tmp_path):
    words = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path / "bank")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()[: done.stdout.split().index("new") + 1], done.stdout.split()
    outcomes = second[len(first) :]
    # Before there was a bank: nothing, until the manifest is in place.
    assert set(first[:-1]) == {"nothing"}
    # Four files are opened, written, flushed and renamed, each step with a moment before it.
    assert len(outcomes) > 16
    switch = outcomes.index("new")
    assert outcomes == ["old"] * switch + ["new"] * (len(outcomes) - switch)


def test_saved_vectors_are_those_of_the_items(tmp_path):
    bank = bank_with_a_past()
    bank.search("Bob", 1)
    bank.save(tmp_path)
    stored = numpy.load(file_of(tmp_path, "vectors"))
    assert stored.dtype == numpy.float32
    # No item of Ann's bank has a key that its value lacks but the first.
    assert (stored == bank.embed(["job: Ann is a nurse", "Bob has a cat", "naïve 名前 \u2028 \ud800"])).all()

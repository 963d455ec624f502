"""Pages of runs with memory banks, of evaluations and of answers, and folders that somebody else made."""

import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console
from test_view import data_of, write_run

from chat_server import TALK, ChatServer, config_text, managing, rows, write_tokenizer
from memfactory.config import load_config
from memfactory.errors import ConfigError, DataError
from memfactory.evaluation import EvalOverrides, run_evaluation
from memfactory.figures import MOST_LINES, draw_run
from memfactory.inference import run_inference
from memfactory.transcripts import write_transcripts
from memfactory.types import BankTrace, Event, Group, MemoryItem, Message, Reply, Reward, Task, Trajectory, Turn
from memfactory.view import write_view

HOSTILE = "</script><img src=x onerror=alert(1)>"


def shown_text(page: Path) -> str:
    """All text that the page's script shows, first section and attempt after attempt; skipped without node."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    done = subprocess.run(
        ["node", Path(__file__).with_name("dom.js"), page], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def data(page: Path):
    return data_of(page.read_text(encoding="utf-8"))


def attempts(section):
    return [attempt for group in section["groups"] for attempt in group["attempts"]]


def write_bank_run(folder):
    old, new = MemoryItem("m1", "", "Ada lives in Oslo", sources=("D1:1",)), MemoryItem("m2", "", HOSTILE)
    moved = MemoryItem("m1", "", "Ada lives in Rome", sources=("D1:1", "D2:3"), version=2, updated_at="May")
    trace = BankTrace(
        (moved, new), ((None, Event(None, old)), (1, Event(old, moved)), (1, Event(None, new))), ("m1",), ("m1",)
    )
    turns = tuple(
        Turn(step, (Message("user", "Who?"),), Reply(HOSTILE, "stop"), False) for step in ("update", "answer")
    )
    attempts = tuple(Trajectory(n, turns, HOSTILE, Reward(1.0), bank=trace) for n in range(2))
    group = Group(Task("t1", HOSTILE, ("Ana",)), attempts)
    write_transcripts(folder, 1, [group], [{}], frame=lambda roles: "SYSTEM PROMPT {0} END")


def test_a_runs_page_shows_items_provenance_and_what_each_turn_did(tmp_path):
    write_bank_run(tmp_path)
    page = write_view(tmp_path)
    first, second = attempts(data(page)["sections"][0])
    assert [item["sources"] for item in first["bank"]["items"][:1]] == [["D1:1", "D2:3"]]
    assert [(one["turn"], one["operation"]) for one in first["bank"]["changes"]] == [
        (None, "ADD"),
        (1, "UPDATE"),
        (1, "ADD"),
    ]
    # The second attempt ends with the same bank, which its own turns did not make.
    assert second["bank"]["items"] == first["bank"]["items"]
    assert {one["turn"] for one in second["bank"]["changes"]} == {None}
    shown = shown_text(page)
    for told in ("Memory bank: 2 items", "D1:1, D2:3", "UPDATE m1", "1 changes made outside", "SYSTEM PROMPT Who? END"):
        assert told in shown
    assert HOSTILE in shown and page.read_text().count("</script>") == 1


@pytest.fixture
def place(tmp_path, monkeypatch):
    server = ChatServer()
    (tmp_path / "reader.yaml").write_text(config_text(server.url, write_tokenizer(tmp_path / "words.json")))
    (tmp_path / "manager.yaml").write_text(
        "agent: memory_r1\nenv: {name: memory_bank, rewards: {em: 1.0}}\n"
        f'engine: {{kind: openai, model: m, base_url: "{server.url}", api_key_env: "", retries: 0, '
        f'tokenizer: "{tmp_path / "words.json"}"}}\n'
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    monkeypatch.chdir(tmp_path)
    yield tmp_path, server
    server.close()


def test_the_page_of_an_evaluation_shows_results_and_samples(place):
    folder, _ = place
    overrides = EvalOverrides(("rows.jsonl",), samples=2, metrics=("boxed_em",))
    console = Console(file=io.StringIO())
    run_evaluation([load_config("reader.yaml")], overrides, output=folder / "out", console=console)
    page = write_view(folder / "out")
    assert page == folder / "out/view.html"
    found = data(page)
    (row,) = found["evaluations"]
    assert (row["what"], row["dataset"], row["metric"], row["mean"], row["n"], row["k"]) == (
        "reader",
        "rows",
        "boxed_em",
        0.75,
        4,
        2,
    )
    (section,) = found["sections"]
    assert section["title"] == "reader / rows" and [len(group["attempts"]) for group in section["groups"]] == [2] * 4
    assert "memory_agent" in found["config"]
    shown = shown_text(page)
    assert "What is the code of Alice?" in shown and "0.3006 to" in shown and "Scores: boxed_em " in shown
    samples = write_view(folder / "out/samples/reader/rows.jsonl", folder / "samples.html")
    assert len(attempts(data(samples)["sections"][0])) == 8


def test_the_page_of_answers_shows_the_bank_that_they_rest_on(place):
    folder, server = place
    server.reply = managing
    run_inference(
        load_config("manager.yaml"),
        question="What is the code of Bob?",
        conversation=folder / "talk.json",
        output=folder / "answers.jsonl",
        console=Console(file=io.StringIO()),
    )
    page = write_view(folder / "answers.jsonl")
    assert page == folder / "answers.html"
    ((attempt,),) = [attempts(section) for section in data(page)["sections"]]
    assert [turn["step"] for turn in attempt["turns"]] == ["extract", "update", "extract", "update", "answer"]
    assert [(one["turn"], one["operation"], one["id"]) for one in attempt["bank"]["changes"]] == [
        (2, "ADD", "m1"),
        (4, "DELETE", "m1"),
        (4, "ADD", "m2"),
    ]
    shown = shown_text(page)
    for told in ("Memory bank: 1 items", "DELETE m1", "Bob's code is ten", "D2:1", "Answer: ten"):
        assert told in shown


def test_links_out_of_a_run_are_neither_followed_nor_written_through(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (outside / "secret.yaml").write_text("secret: 7\n")
    (outside / "kept.png").write_text("kept")
    write_run(run, 2)
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(outside / "secret.yaml")
    (run / "figures").symlink_to(outside)
    (run / ".view.html.partial").symlink_to(outside / "kept.png")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_view(run)
    (run / ".view.html.partial").unlink(missing_ok=True)
    (run / "view.html").symlink_to(outside / "kept.png")
    found = data(write_view(run))
    assert found["config"] == "" and found["notes"] == ["config.yaml is a link out of the folder and is not shown."]
    assert draw_run(run) == []
    assert sorted(path.name for path in outside.iterdir()) == ["kept.png", "secret.yaml"]
    assert (outside / "kept.png").read_text() == "kept" and not (run / "view.html").is_symlink()


def test_a_linked_figure_is_replaced_and_not_written_through(tmp_path):
    write_run(tmp_path, 2)
    (tmp_path / "figures").mkdir()
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "figures/reward.png").symlink_to(tmp_path / "kept")
    draw_run(tmp_path)
    assert (tmp_path / "kept").read_text() == "kept" and not (tmp_path / "figures/reward.png").is_symlink()


def test_a_hundred_thousand_steps_are_drawn_from_a_sample_and_said_so(tmp_path):
    metrics = {name: 0.5 for name in ("reward", "reward/em", "kl", "entropy", "grad_norm", "loss")}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, **metrics}) + "\n" for step in range(1, 100_001))
    )
    begun = time.perf_counter()
    found = data(write_view(tmp_path))
    # Two minutes before, some seconds now.
    assert time.perf_counter() - begun < 30
    assert found["notes"] == [f"Curves are drawn from {MOST_LINES:,} of 100,000 lines of metrics, evenly spread."]
    assert set(found["figures"]) == {"reward", "training"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_that_cannot_be_written_is_shown_elsewhere(tmp_path):
    write_run(tmp_path, 1)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(ConfigError, match="name another place with --output FILE"):
            write_view(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_a_page_that_cannot_be_written_names_the_way_out(tmp_path):
    write_run(tmp_path, 1)
    (tmp_path / "view.html").mkdir()
    with pytest.raises(ConfigError, match=r"view\.html cannot be written: .*; name another place with --output FILE"):
        write_view(tmp_path)
    assert write_view(tmp_path, tmp_path / "elsewhere/page.html").is_file()
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"id": 1}\n', "a row that neither infer nor eval writes"),
        ("[1]\n", "should be a JSON object"),
        ('{"id": "a", "question": "q", "answer": "x", "turns": [1]}\n', "neither infer nor eval writes"),
    ],
)
def test_files_of_something_else_are_told(tmp_path, content, told):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=told):
        write_view(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match="there is no"):
        write_view(tmp_path / "nothing")
    (tmp_path / "results.json").write_text('{"models": {"a": {}}}')
    with pytest.raises(DataError, match="is not what eval writes"):
        write_view(tmp_path)


def test_a_record_that_was_scored_anew_is_shown_once(tmp_path):
    row = {"task_id": "t", "sample": 0, "question": "q", "answer": "x", "memory": "", "turns": []}
    other = {**row, "task_id": "u", "scores": {"em": 1.0}}
    lines = [{"fingerprint": {}}, {**row, "scores": {"em": 0.0}}, other, {**row, "scores": {"em": 0.5}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = attempts(data(write_view(tmp_path / "rows.jsonl"))["sections"][0])
    assert [attempt["score"] for attempt in shown] == [1.0, 0.5]


def test_long_files_are_thinned_out_and_said_so(tmp_path):
    row = {"question": "q", "answer": "x", "memory": "m", "turns": []}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n in range(900)))
    found = data(write_view(tmp_path / "rows.jsonl"))
    assert len(found["sections"][0]["groups"]) == 400 and "at most 400 rows" in found["notes"][0]
    assert not re.findall(r"https?://", (tmp_path / "rows.html").read_text())


WHOLE = {
    "step": 1,
    "task_id": "t",
    "question": "q",
    "answers": ["a"],
    "index": 0,
    "reward": {"total": 1.0, "parts": {}},
    "advantage": {},
    "answer": "x",
    "turns": [],
}


@pytest.mark.parametrize(
    "damage",
    [
        {"turns": None},
        {"turns": [{}]},
        {"reward": 3},
        {"reward": {"total": "much", "parts": {}}},
        {"bank": [1]},
        {"bank": {"items": [1], "retrieved": [{}]}},
        {"answers": [1]},
    ],
)
def test_transcripts_that_no_run_writes_are_told(tmp_path, damage):
    (tmp_path / "transcripts").mkdir()
    (tmp_path / "transcripts/step-000001.jsonl").write_text(json.dumps({**WHOLE, **damage}) + "\n")
    with pytest.raises(DataError, match=r"step-000001\.jsonl holds a"):
        write_view(tmp_path)


def test_odd_numbers_and_texts_are_shown_as_far_as_they_can_be(tmp_path):
    (tmp_path / "transcripts").mkdir()
    odd = json.dumps({**WHOLE, "answer": "half \ud800", "reward": {"total": float("nan"), "parts": {"em": None}}})
    (tmp_path / "transcripts/step-000001.jsonl").write_text(odd + "\n")
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 1' + "0" * 400 + '}\n{"step": 2, "reward": 0.5}\n')
    page = write_view(tmp_path)
    assert "half \ufffd" in page.read_text(encoding="utf-8") and set(data(page)["figures"]) == {"reward"}
    shown_text(page)

"""Pages of runs with memory banks, of evaluations and of answers, and folders that somebody else made."""

import json
import os
import re
import time

import pytest
from pages import PageReader, shown_text
from test_view import HOSTILE, write_run

from chat_server import TALK, config_text, managing, rows, write_tokenizer
from memfactory.config import load_config
from memfactory.errors import ConfigError, DataError
from memfactory.evaluation import EvalOverrides, run_evaluation
from memfactory.figures import MOST_LINES, draw_run
from memfactory.inference import InferOptions, InferRequest, run_inference
from memfactory.transcripts import write_transcripts
from memfactory.types import BankTrace, Event, Group, MemoryItem, Message, Reply, Reward, Task, Trajectory, Turn
from memfactory.view import write_view


def write_bank_run(folder):
    old, new = MemoryItem("m1", "", "Ada lives in Oslo", sources=("D1:1",)), MemoryItem("m2", "", HOSTILE)
    moved = MemoryItem("m1", "", "Ada lives in Rome", sources=("D1:1", "D2:3"), version=2, updated_at="May")
    trace = BankTrace(
        (moved, new), ((None, Event(None, old)), (1, Event(old, moved)), (1, Event(None, new))), ("m1",), ("m1",)
    )
    turns = tuple(
        Turn(step, (Message("user", "Who?"),), Reply(HOSTILE, "stop"), False) for step in ("update", "answer")
    )
    trajectories = tuple(Trajectory(n, turns, HOSTILE, Reward(1.0), bank=trace) for n in range(2))
    group = Group(Task("t1", HOSTILE, ("Ana",)), trajectories)
    write_transcripts(folder, 1, [group], [{}], frame=lambda roles: "SYSTEM PROMPT {0} END")


def test_a_runs_page_shows_items_provenance_and_what_each_turn_did(tmp_path):
    write_bank_run(tmp_path)
    page = write_view(tmp_path)
    first, second = PageReader(page).episodes()
    assert [item["sources"] for item in first["bank"]["items"][:1]] == [["D1:1", "D2:3"]]
    assert [(one["turn"], one["operation"]) for one in first["bank"]["changes"]] == [
        (None, "ADD"),
        (1, "UPDATE"),
        (1, "ADD"),
    ]
    # The second episode ends with the same bank, which its own turns did not make.
    assert second["bank"]["items"] == first["bank"]["items"]
    assert {one["turn"] for one in second["bank"]["changes"]} == {None}
    shown = shown_text(page)
    for text in ("Memory bank: 2 items", "D1:1, D2:3", "UPDATE m1", "1 change outside", "SYSTEM PROMPT Who? END"):
        assert text in shown
    assert HOSTILE in shown and page.read_text().count("</script>") == 1


@pytest.fixture
def place(tmp_path, chat_server, monkeypatch):
    (tmp_path / "reader.yaml").write_text(config_text(chat_server.url, write_tokenizer(tmp_path / "words.json")))
    (tmp_path / "manager.yaml").write_text(
        "agent: memory_r1\nenv: {name: memory_bank, rewards: {em: 1.0}}\n"
        f'engine: {{kind: openai, model: m, base_url: "{chat_server.url}", api_key_env: "", retries: 0, '
        f'tokenizer: "{tmp_path / "words.json"}"}}\n'
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    monkeypatch.chdir(tmp_path)
    return tmp_path, chat_server


def test_the_page_of_an_evaluation_shows_results_and_samples(place):
    folder, _ = place
    overrides = EvalOverrides(("rows.jsonl",), samples=2, metrics=("boxed_em",))
    run_evaluation([load_config("reader.yaml")], overrides, output=folder / "out")
    page = write_view(folder / "out")
    assert page == folder / "out/view.html"
    read = PageReader(page)
    titles = ["dataset", "metric", "model", "mean", "± standard error", "95 % confidence interval", "questions"]
    # Right, right, right, wrong: Wilson's interval of 3 in 4.
    row = ["rows", "boxed_em", "reader", "0.7500", "0.2500", "0.3006 to 0.9544", "4", "2"]
    assert read.rows == [[*titles, "samples per question"], row]
    (section,) = read.sections
    assert section["title"] == "reader / rows" and [len(group["episodes"]) for group in section["groups"]] == [2] * 4
    assert "memory_agent" in read.config
    shown = shown_text(page)
    assert "What is the code of Alice?" in shown and "Scores: boxed_em " in shown and "sample 1: " in shown
    samples = write_view(folder / "out/samples/reader/rows.jsonl", folder / "samples.html")
    assert len(PageReader(samples).episodes()) == 8


def test_the_page_of_answers_shows_the_bank_that_they_rest_on(place):
    folder, server = place
    server.reply = managing
    run_inference(
        load_config("manager.yaml"),
        InferRequest("What is the code of Bob?", conversation=folder / "talk.json"),
        InferOptions(folder / "answers.jsonl"),
    )
    page = write_view(folder / "answers.jsonl")
    assert page == folder / "answers.html"
    (episode,) = PageReader(page).episodes()
    assert [turn["step"] for turn in episode["turns"]] == ["extract", "update", "extract", "update", "answer"]
    assert [(one["turn"], one["operation"], one["id"]) for one in episode["bank"]["changes"]] == [
        (2, "ADD", "m1"),
        (4, "DELETE", "m1"),
        (4, "ADD", "m2"),
    ]
    shown = shown_text(page)
    for text in ("Memory bank: 1 item", "DELETE m1", "Bob's code is ten", "D2:1", "Answer: ten"):
        assert text in shown


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
    page = PageReader(write_view(run))
    assert page.config == "" and page.notes == ["config.yaml is a link out of the folder and is not shown."]
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


def test_curves_of_100_000_steps_show_a_sample_and_a_note(tmp_path):
    metrics = {name: 0.5 for name in ("reward", "reward/em", "kl", "entropy", "grad_norm", "loss")}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, **metrics}) + "\n" for step in range(1, 100_001))
    )
    begun = time.perf_counter()
    page = PageReader(write_view(tmp_path))
    # Some seconds; all lines would take two minutes.
    assert time.perf_counter() - begun < 30
    assert page.notes == [f"The curves show {MOST_LINES:,} of 100,000 lines of metrics, evenly spread."]
    assert page.figures == ["reward", "training"]


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
    ("content", "message"),
    [
        ('{"id": 1}\n', "a row that neither infer nor eval writes"),
        ("[1]\n", "should be a JSON object"),
        ('{"id": "a", "question": "q", "answer": "x", "turns": [1]}\n', "neither infer nor eval writes"),
    ],
)
def test_files_that_no_command_writes_are_refused(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        write_view(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match="there is no file or folder"):
        write_view(tmp_path / "nothing")
    (tmp_path / "results.json").write_text('{"models": {"a": {}}}')
    with pytest.raises(DataError, match=r"is not a results\.json of eval"):
        write_view(tmp_path)


def test_a_record_that_was_scored_again_is_shown_once(tmp_path):
    row = {"task_id": "t", "sample": 0, "question": "q", "answer": "x", "memory": "", "turns": []}
    other = {**row, "task_id": "u", "scores": {"em": 1.0}}
    lines = [{"fingerprint": {}}, {**row, "scores": {"em": 0.0}}, other, {**row, "scores": {"em": 0.5}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    episodes = PageReader(write_view(tmp_path / "rows.jsonl")).episodes()
    assert [episode["score"] for episode in episodes] == [1.0, 0.5]


def test_long_files_are_thinned_out_with_a_note(tmp_path):
    row = {"question": "q", "answer": "x", "memory": "m", "turns": []}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n in range(900)))
    page = PageReader(write_view(tmp_path / "rows.jsonl"))
    assert len(page.sections[0]["groups"]) == 400 and "shows 400 rows" in page.notes[0]
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
def test_transcripts_that_no_run_writes_are_refused(tmp_path, damage):
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
    assert "half \ufffd" in page.read_text(encoding="utf-8") and PageReader(page).figures == ["reward"]
    shown_text(page)

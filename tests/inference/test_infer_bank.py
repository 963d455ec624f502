"""`memfactory infer`: what it prints, how it samples, and a memory bank that goes on from command to command."""

import json
import re
import sys

import pytest

from chat_server import TALK, config_text, managing, rows, write_tokenizer
from memfactory.cli import main
from memfactory.memory.bank import BankSource


@pytest.fixture
def run(tmp_path, chat_server, monkeypatch, capsys):
    """A command line in a folder with two configs; its exit code, stdout and stderr."""
    tokenizer = write_tokenizer(tmp_path / "words.json")
    (tmp_path / "reader.yaml").write_text(config_text(chat_server.url, tokenizer))
    (tmp_path / "manager.yaml").write_text(
        "agent: memory_r1\nenv: {name: memory_bank, rewards: {em: 1.0}}\n"
        f'engine: {{kind: openai, model: m, base_url: "{chat_server.url}", api_key_env: "", retries: 0, '
        f'tokenizer: "{tokenizer}"}}\n'
    )
    (tmp_path / "text.txt").write_text(rows()[0]["context"])
    (tmp_path / "first.json").write_text(json.dumps(TALK[:1]))
    (tmp_path / "second.json").write_text(json.dumps(TALK[1:]))
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["memfactory", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return command


READ = ("infer", "reader.yaml", "--question", "What is the code of Carol?", "--document", "text.txt")
ASK = ("infer", "manager.yaml", "--question", "What is the code of Bob?", "--bank", "bank")


def test_infer_is_greedy_unless_a_temperature_is_given(run, chat_server):
    # The config says eval.temperature: 0.5, which is how evaluations sample.
    run(*READ)
    assert {request["temperature"] for request in chat_server.requests} == {0.0}
    chat_server.requests.clear()
    run(*READ, "--temperature", "0.7", "--top-p", "0.9")
    assert {(request["temperature"], request["top_p"]) for request in chat_server.requests} == {(0.7, 0.9)}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval.temperature=0.3"], "infer is greedy; give --temperature"),
        (["eval={top_p: 0.3}"], "infer is greedy; give --top-p"),
        (["--top-p", "0.3"], "need --temperature"),
    ],
)
def test_sampling_that_would_be_ignored_is_refused(run, words, told):
    code, said, errors = run(*READ, *words)
    assert (code, said) == (2, "") and told in errors


def test_an_answer_is_printed_bare_and_as_json_with_all_it_rests_on(run):
    assert run(*READ)[:2] == (0, "three\n")
    code, said, _ = run(*READ, "--json")
    found = json.loads(said)
    assert code == 0 and len(said.splitlines()) == 1
    assert (found["answer"], found["memory"], found["question"]) == ("three", "three", "What is the code of Carol?")
    assert [turn["step"] for turn in found["turns"]] == ["update", "update", "answer"]
    assert found["turns"][2]["text"] == "It is \\boxed{three}." and found["tokens"] is None


def test_a_bank_is_kept_and_the_next_command_goes_on_from_it(run, chat_server):
    chat_server.reply = managing
    assert run(*ASK, "--conversation", "first.json")[:2] == (0, "nine\n")
    chat_server.requests.clear()
    assert run(*ASK)[:2] == (0, "nine\n")
    assert len(chat_server.requests) == 1  # Nothing is read: the question alone is asked.
    assert run(*ASK, "--conversation", "second.json")[:2] == (0, "ten\n")
    assert run(*ASK)[:2] == (0, "ten\n")


def test_a_kept_bank_holds_items_provenance_and_history(run, chat_server, tmp_path):
    chat_server.reply = managing
    run(*ASK, "--conversation", "first.json")
    run(*ASK, "--conversation", "second.json")
    bank = BankSource().load(tmp_path / "bank")
    (item,) = bank.list()
    assert (item.value, item.sources) == ("Bob's code is ten", ("D2:1",))
    # The first item was deleted in the second command: its history says so, and its id is not given out again.
    assert item.id == "m2" and [event.after is None for event in bank.history("m1")] == [False, True]


def test_a_row_of_an_agent_with_a_bank_holds_items_operations_and_all_turns(run, chat_server):
    chat_server.reply = managing
    (row,) = map(json.loads, run(*ASK, "--conversation", "first.json", "--json")[1].splitlines())
    assert [turn["step"] for turn in row["turns"]] == ["extract", "update", "answer"]
    assert [turn.get("shared", False) for turn in row["turns"]] == [True, True, False]
    (item,) = row["items"]
    assert (item["id"], item["value"], item["sources"]) == ("m1", "Bob's code is nine", ["D1:1"])
    assert row["operations"] == [{"turn": 2, "operation": "ADD", "id": "m1", "after": item}]
    (row,) = map(json.loads, run(*ASK, "--conversation", "second.json", "--json")[1].splitlines())
    assert [(one["turn"], one["operation"], one["id"]) for one in row["operations"]] == [
        (2, "DELETE", "m1"),
        (2, "ADD", "m2"),
    ]


def test_rows_ask_of_one_bank_and_leave_it_as_it_is(run, chat_server, tmp_path):
    chat_server.reply = managing
    run(*ASK, "--conversation", "first.json")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()}
    questions = [{"id": str(number), "question": "What is the code of Bob?"} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    code, said, _ = run("infer", "manager.yaml", "--input", "rows.jsonl", "--bank", "bank")
    assert code == 0 and [json.loads(line)["answer"] for line in said.splitlines()] == ["nine"] * 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()} == before


def test_an_output_takes_the_same_question_again_when_the_bank_has_changed(run, chat_server, tmp_path):
    chat_server.reply = managing
    for talk in ("first.json", "second.json"):
        assert run(*ASK, "--conversation", talk, "--output", "answers.jsonl")[0] == 0
    assert run(*ASK, "--output", "answers.jsonl")[0] == 0
    answers = [json.loads(line)["answer"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers == ["nine", "ten", "ten"]


def test_naive_rag_keeps_what_was_said_and_adds_to_it(run, chat_server, tmp_path):
    chat_server.reply = lambda request: (
        "**Answer:** " + re.findall(r"code of Bob is (\w+)", str(request["messages"]))[-1]
    )
    for talk in ("first.json", "second.json"):
        assert run(*ASK, "agent=naive_rag", "--conversation", talk)[0] == 0
    assert [item.id for item in BankSource().load(tmp_path / "bank").list()] == ["said1", "said2"]


def test_a_failed_answer_leaves_the_bank_as_it_was(run, chat_server, tmp_path):
    chat_server.reply = managing
    run(*ASK, "--conversation", "first.json")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()}
    chat_server.reply = lambda request: 500 if "**Answer:**" in str(request) else managing(request)
    code, _, errors = run(*ASK, "--conversation", "second.json")
    assert code != 0 and errors
    assert {path.name: path.read_bytes() for path in (tmp_path / "bank").iterdir()} == before


def test_a_bank_that_cannot_be_gone_on_from_is_told(run, chat_server, tmp_path):
    chat_server.reply = managing
    assert "the agent 'memory_agent' has no memory bank; these have one: memory_r1" in run(*READ, "--bank", "b")[2]
    assert "bank is empty, and nothing is read" in run(*ASK)[2]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    code, _, errors = run(*ASK[:-1], "notes", "--conversation", "first.json")
    assert code == 2 and "notes holds no memory bank, but other files: mine.txt" in errors
    (tmp_path / "file").write_text("")
    assert "--bank file" in run(*ASK[:-1], "file", "--conversation", "first.json")[2]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "Who?", "conversation": TALK}) + "\n")
    assert "has a text to read" in run("infer", "manager.yaml", "--input", "rows.jsonl", "--bank", "bank")[2]


@pytest.mark.parametrize("place", ["text.txt/answers.jsonl", ".", "/proc/nowhere/answers.jsonl"])
def test_an_impossible_output_is_told_without_a_traceback(run, place):
    code, _, errors = run(*READ, "--output", place)
    assert code == 2 and f"--output {place}" in errors and "Traceback" not in errors

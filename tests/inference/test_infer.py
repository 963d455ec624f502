"""`memfactory infer` over a local chat endpoint."""

import io
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chat_server import TALK, ChatServer, config_text, managing, rows, write_tokenizer
from memfactory.cli.answers import AnswerPrinter
from memfactory.config import load_config
from memfactory.errors import ConfigError, DataError
from memfactory.evaluation.memory_view import bank_difference, word_difference
from memfactory.inference import GREEDY, InferOptions, InferRequest, run_inference
from memfactory.types import MemoryItem, SamplingParams


@pytest.fixture
def place(tmp_path, chat_server, monkeypatch):
    (tmp_path / "reader.yaml").write_text(config_text(chat_server.url, write_tokenizer(tmp_path / "words.json")))
    (tmp_path / "text.txt").write_text(rows()[0]["context"])
    asked = [{"id": row["input"].split()[-1], "input": row["input"], "context": row["context"]} for row in rows()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def infer(place, *overrides, output=None, bank=None, sampling=GREEDY, as_json=False, show_memory=False, **request):
    """The exit code and stdout of `memfactory infer`."""
    console = Console(file=io.StringIO(), width=60)
    documents, rows = tuple(request.pop("documents", ())), request.pop("input", None)
    request = InferRequest(documents=documents, rows=rows, **request)
    as_text = rows is None and not as_json
    with AnswerPrinter(None if output else console, as_text=as_text, show_memory=show_memory) as printer:
        options = InferOptions(output, bank, sampling, printer)
        result = run_inference(load_config(place / "reader.yaml", overrides), request, options)
        return printer.finished(result, output), console.file.getvalue()


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_question_about_a_document_prints_the_answer_alone(place):
    code, said = infer(place, question="What is the code of Carol?", documents=[place / "text.txt"])
    assert (code, said) == (0, "three\n")


def test_several_documents_are_numbered(place, chat_server):
    (place / "more.txt").write_text("The code of Eve is ten.")
    documents = [place / "text.txt", place / "more.txt"]
    _, said = infer(place, question="What is the code of Eve?", documents=documents)
    assert said == "ten\n"
    prompts = "".join(request["messages"][-1]["content"] for request in chat_server.requests)
    assert "Document 1:\nThe code of Alice" in prompts and "Document 2:\nThe code of" in prompts


def test_rows_become_answers_with_memory_and_turns(place):
    code, said = infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")
    assert (code, said) == (0, "")
    found = {row["id"]: row for row in answers(place / "answers.jsonl")}
    assert set(found) == {"Alice?", "Bob?", "Carol?", "Dora?"}
    assert found["Carol?"]["question"] == "What is the code of Carol?"
    assert found["Carol?"]["memory"] == "three"
    # 28 tokens in sections of 14: two updates, then the answer.
    assert [(turn["step"], turn["text"]) for turn in found["Carol?"]["turns"]] == [
        ("update", "No previous memory"),
        ("update", "three"),
        ("answer", "It is \\boxed{three}."),
    ]


def test_rows_without_an_output_are_json_lines_on_stdout(place):
    _, said = infer(place, input=place / "rows.jsonl")
    assert {json.loads(line)["memory"] for line in said.splitlines()} == {
        "seven",
        "nine",
        "three",
        "No previous memory",
    }


def test_answered_rows_are_not_played_again(place, chat_server):
    infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")
    whole = (place / "answers.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (place / "answers.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:40])
    asked = len(chat_server.requests)
    infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")
    assert len(chat_server.requests) - asked == 2 * 3
    assert sorted((place / "answers.jsonl").read_bytes().splitlines()) == sorted(whole.splitlines())


def test_answers_of_another_decoding_are_refused(place):
    infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")
    with pytest.raises(ConfigError, match="another --output"):
        infer(place, sampling=SamplingParams(0.7), input=place / "rows.jsonl", output=place / "answers.jsonl")


def test_an_id_that_now_asks_another_question_is_refused(place):
    infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")
    (place / "rows.jsonl").write_text(json.dumps({"id": "Bob?", "input": "Who is Bob?", "context": "Bob."}) + "\n")
    with pytest.raises(ConfigError, match=r"other questions under the ids Bob\?"):
        infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")


def test_a_bad_row_is_reported_by_its_number_and_the_others_are_answered(place, capsys):
    text = (place / "rows.jsonl").read_text()
    (place / "rows.jsonl").write_text('{"input": "What?"}\n' + text)
    code, _ = infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")
    assert code == 1
    assert len(answers(place / "answers.jsonl")) == 4
    assert "rows.jsonl line 1 has no text" in " ".join(capsys.readouterr().err.split())


def test_what_became_of_the_rows_is_told(place, capsys):
    for new, held in ((4, 0), (0, 4)):
        infer(place, input=place / "rows.jsonl", output=place / "answers.jsonl")
        said = capsys.readouterr().err
        assert said.splitlines()[-1] == f"{place / 'answers.jsonl'}: {new} answers written, {held} were there"


def test_the_memory_is_shown_on_stderr_as_it_evolves(place, capsys):
    _, said = infer(place, question="What is the code of Carol?", documents=[place / "text.txt"], show_memory=True)
    shown = capsys.readouterr().err
    assert shown.index("turn 1 (update): 3 words") < shown.index("No previous memory") < shown.index("turn 2 (update)")
    assert said == "three\n"


def test_a_word_difference_marks_what_came_and_what_went():
    text = word_difference("Ana lives in Oslo.", "Ana lives in Rome now.")
    assert text.plain == "Ana lives in Oslo. Rome now."
    marked = {text.plain[span.start : span.end]: str(span.style) for span in text.spans if span.style}
    assert marked == {"Oslo.": "red strike", "Rome now.": "green"}


@given(*[st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)] * 2)
def test_a_word_difference_holds_both_texts(before, after):
    text = word_difference(before, after)
    styles = [""] * len(text.plain)
    for span in text.spans:
        styles[span.start : span.end] = [str(span.style)] * (span.end - span.start)
    held = {
        name: "".join(c for c, style in zip(text.plain, styles) if style != name) for name in ("red strike", "green")
    }
    assert held["red strike"].split() == after.split() and held["green"].split() == before.split()


def test_a_memory_that_repeats_itself_is_compared_at_once():
    begun = time.perf_counter()
    word_difference("a b " * 500, "b a c " * 333)
    word_difference("a b " * 200, "b a c " * 133)
    # 25 s before, in which nothing else was played.
    assert time.perf_counter() - begun < 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "nothing to answer"),
        ({"question": "What?", "input": "rows.jsonl"}, "brings its own questions"),
        ({"documents": ["text.txt"]}, "--document needs a --question"),
        ({"question": "  "}, "--question is empty"),
    ],
)
def test_options_that_do_not_fit_are_told(place, options, told):
    with pytest.raises(ConfigError, match=told):
        infer(place, **options)


def test_a_missing_document_is_told(place):
    with pytest.raises(DataError, match=r"none\.txt cannot be read: No such file"):
        infer(place, question="What?", documents=[place / "none.txt"])


def test_paths_may_be_texts(place):
    config = load_config(place / "reader.yaml")
    (answer,) = run_inference(config, InferRequest("What is the code of Carol?", documents="text.txt")).answers
    assert str(answer) == "three"
    options = InferOptions(output="answers.jsonl")
    assert run_inference(config, InferRequest(rows="rows.jsonl"), options).complete
    assert run_inference(config, InferRequest(rows="rows.jsonl"), options).answered_before == len(rows())


def test_an_endpoint_needs_no_torch(place):
    script = (
        "import sys; from pathlib import Path; from memfactory.config import *; "
        "from memfactory.inference import InferRequest, run_inference; "
        "request = InferRequest('What is the code of Bob?', (Path('text.txt'),)); "
        "(answer,) = run_inference(load_config('reader.yaml'), request).answers; "
        "print(answer, sorted({'torch', 'transformers', 'datasets', 'matplotlib', 'swanlab'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=place)
    assert done.stdout == "nine []\n", done.stderr


# Agents with a memory bank


@pytest.fixture
def manager(place, chat_server):
    chat_server.reply = managing
    config = (
        "agent: memory_r1\nenv: {name: memory_bank, rewards: {em: 1.0}}\n"
        f'engine: {{kind: openai, model: m, base_url: "{chat_server.url}", api_key_env: "", retries: 0, '
        f'tokenizer: "{place / "words.json"}"}}\n'
    )
    (place / "reader.yaml").write_text(config)
    (place / "talk.json").write_text(json.dumps(TALK))
    return place


@pytest.mark.parametrize("value", [TALK, {"conversation": TALK, "question": "Who?", "q": "Why?", "answers": ["x"]}])
def test_a_question_about_a_conversation_is_answered_from_what_was_remembered(manager, chat_server, value):
    (manager / "talk.json").write_text(json.dumps(value))
    code, said = infer(manager, question="What is the code of Bob?", conversation=manager / "talk.json")
    assert (code, said) == (0, "ten\n")
    assert "What is the code of Bob?" in chat_server.requests[-1]["messages"][-1]["content"]


def test_the_items_of_a_bank_are_shown_as_they_come_and_go_and_only_once(manager, capsys):
    infer(manager, question="What is Bob's code?", conversation=manager / "talk.json", show_memory=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line[:1] in "+-~"]
    assert lines == ["+ m1: Bob's code is nine", "- m1: Bob's code is nine", "+ m2: Bob's code is ten"]


def test_rows_with_a_conversation_give_answers_with_what_was_retrieved_and_cited(manager, chat_server):
    rows = [
        {"id": "now", "conversation": TALK, "question": "What is the code of Bob?"},
        {"id": "then", "fact": TALK[:1], "q": "What is the code of Bob?", "a": None},
    ]
    (manager / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _ = infer(manager, input=manager / "rows.jsonl", output=manager / "answers.jsonl")
    assert code == 0
    found = {row["id"]: row for row in answers(manager / "answers.jsonl")}
    assert {id: row["answer"] for id, row in found.items()} == {"now": "ten", "then": "nine"}
    (item,) = found["now"]["retrieved"]
    assert (item["id"], item["value"], item["sources"]) == ("m2", "Bob's code is ten", ["D2:1"])
    assert found["now"]["citations"] is None and "Bob's code is ten" in found["now"]["memory"]


def test_a_row_whose_helper_fails_is_told_left_out_and_asked_again(manager, chat_server, capsys):
    helper = ChatServer(lambda request: 500 if "nine" in request["messages"][-1]["content"] else managing(request))
    engines = f'engines={{reader: {{kind: openai, model: r, base_url: "{helper.url}", api_key_env: "", retries: 0}}}}'
    reader = "agent.modules.answerer={name: answer, interface: inference, engine: reader}"
    rows = [{"id": "now", "conversation": TALK, "q": "Now?"}, {"id": "then", "conversation": TALK[:1], "q": "Then?"}]
    (manager / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"input": manager / "rows.jsonl", "output": manager / "answers.jsonl"}
    code, _ = infer(manager, engines, reader, **options)
    told = capsys.readouterr().err
    assert code == 1 and "not answered: then: 'r' at" in told and "1 answers written, 0 were there" in told
    assert [row["id"] for row in answers(manager / "answers.jsonl")] == ["now"]
    helper.reply = managing
    code, _ = infer(manager, engines, reader, **options)
    helper.close()
    assert code == 0 and [row["id"] for row in answers(manager / "answers.jsonl")] == ["now", "then"]


def test_a_document_is_read_into_a_memory_bank_paragraph_by_paragraph(manager, chat_server, capsys):
    (manager / "bob.txt").write_text("The code of Bob is nine.\n\nThe code of Bob is ten now.")
    code, said = infer(manager, question="What is the code of Bob?", documents=[manager / "bob.txt"])
    assert (code, said) == (0, "ten\n") and "not read" not in capsys.readouterr().err
    assert "Text: The code of Bob is nine.\nText: The code" in chat_server.requests[0]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r"--conversation .*bad.json is not JSON"),
        ("3", r"should be a list of utterances or a row, not int"),
        ('[{"text": "hello"}]', r"conversation\[0\]' has no speaker: expected 'role' or 'speaker'"),
        ("[]", r"--conversation .*bad.json holds no utterance"),
    ],
)
def test_a_conversation_that_is_none_is_told(manager, text, told):
    (manager / "bad.json").write_text(text)
    with pytest.raises((ConfigError, DataError), match=told):
        infer(manager, question="Who?", conversation=manager / "bad.json")


def test_an_environment_that_reads_no_conversations_is_told(place):
    for talk in ({"conversation": TALK, "context": "Some text."}, {"conversation": TALK}, TALK):
        (place / "talk.json").write_text(json.dumps(talk))
        with pytest.raises(ConfigError, match=r"'longcontext' reads no conversations; memory_bank does \(env=memory_"):
            infer(place, question="Who?", conversation=place / "talk.json")


def test_changes_of_a_bank_are_told_item_by_item():
    before = {id: MemoryItem(id, "", f"Ana lives in {town}") for id, town in (("a", "Oslo"), ("b", "Rome"))}
    after = {"b": MemoryItem("b", "", "Ana lives in Paris"), "c": MemoryItem("c", "", "Ben sings", updated_at="May")}
    told = [line.plain for line in bank_difference(before, after)]
    assert told == ["- a: Ana lives in Oslo", "~ b: Ana lives in Rome Paris", "+ c: May: Ben sings"]


def test_thinking_that_never_ends_is_no_answer_and_is_told(place, chat_server, capfd):
    chat_server.reply = lambda request: "<think>\nPerhaps three"
    code, said = infer(place, question="What is the code of Carol?", documents=[place / "text.txt"])
    # The text has two chunks: two updates and the answer.
    assert (code, said) == (0, "\n")
    assert "replies that never ended their thinking: 3." in capfd.readouterr().err
    _, said = infer(place, question="What is the code of Carol?", documents=[place / "text.txt"], as_json=True)
    row = json.loads(said)
    assert (row["answer"], row["memory"], row["unfinished_thinking"]) == (None, "No previous memory", 3)

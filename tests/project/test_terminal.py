"""What is not ours reaches a terminal harmless, and a stream that lacks characters or readers ends nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import memfactory
from chat_server import ChatServer, config_text, write_tokenizer
from memfactory.cli.app import run
from memfactory.cli.output import echo, message, start_logging, typed
from memfactory.console import Console
from memfactory.redaction import REDACTED, keep_secret
from memfactory.terminal import GuardedStream, guarded_streams, harmless, harmless_json

ATTACKS = [
    "\x1b]0;title\x07",
    "\x1b]52;c;ZXZpbA==\x1b\\",
    "\x1bP$q\x1b\\",
    "\x1b[?1049h",
    "\x1b[2J",
    "\x1b[31m",
    "\x1b[8m",
    "\x1bc",
    "\x9b31m",
    "\x9d0;title\x9c",
    "\x90q\x9c",
    "\x08\x08",
    "over\rwritten",
    "\x1b[6n",
    "\x0e",
    "\x7f",
    "\u202egnp.exe",
    "\u2066hidden\u2069",
    "\U000e0041",
]


def harmful(text):
    return [
        c for c in text if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" or c in "\u202e\u2066\u2069\U000e0041"
    ]


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_control_sequence_is_shown_as_an_escape(attack):
    assert not harmful(harmless(f"a\tb\n{attack}"))


@given(st.text())
def test_harmless_text_is_harmless_and_stays(text):
    assert not harmful(harmless(text))
    assert harmless(harmless(text)) == harmless(text)
    assert json.loads(harmless_json(json.dumps(text, ensure_ascii=False))) == text


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "Z", "S"), exclude_characters="\u2028\u2029")))
def test_letters_and_signs_of_all_scripts_stay(text):
    assert harmless(text) == text


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_prints_nothing_but_its_own_sequences(attack, terminal):
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=terminal, color_system="standard" if terminal else None)
    table = Table(f"head {attack}")
    table.add_row(f"cell {attack}")
    table.add_row(Text(f"cell {attack}", style="red"))
    for shown in (attack, Text(attack), Panel(Text(attack)), table):
        console.print(shown, markup=False)
    console.out(attack, highlight=False)
    console.rule(Text(attack))
    said = file.getvalue()
    assert attack == "\x1b[31m" or attack not in said
    ours = "".join(said.split("\x1b[0m")).replace("\x1b[31m", "").replace("\x1b[1m", "").replace("\x1b[92m", "")
    assert terminal or not harmful(ours)


def test_a_console_on_a_terminal_keeps_its_colours():
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard").print(Text("word", style="red"))
    assert file.getvalue() == "\x1b[31mword\x1b[0m\n"


def test_a_key_is_not_broken_over_two_lines_of_a_panel():
    keep_secret("planted-in-a-panel-1234567890")
    file = io.StringIO()
    console = Console(file=file, width=20)
    console.print("xxxxxxxxxx planted-in-a-panel-1234567890", markup=False)
    console.print(Text("xxxxxxxxxx planted-in-a-panel-1234567890"))
    assert "planted" not in file.getvalue() and file.getvalue().count(REDACTED) == 2


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_guarded_stream_lets_only_colours_and_bars_through(attack):
    file = io.StringIO()
    GuardedStream(file).write(attack)
    passes = attack in ("\x1b[31m", "\x1b[8m", "\x1b[2J", "over\rwritten")
    assert (attack in file.getvalue()) == passes
    assert passes or not harmful(file.getvalue())


def test_logs_and_messages_are_harmless(capsys):
    import logging

    start_logging()
    with guarded_streams():
        echo("\x1b]0;x\x07")
        handler = logging.getLogger("memfactory").handlers[0]
        record = logging.LogRecord("memfactory", logging.WARNING, "", 1, "%s sk-abcdef123", ("\x1b]0;x\x07",), None)
        shown = handler.format(record)
    assert not harmful(shown) and "sk-abcdef" not in shown
    assert capsys.readouterr().out == "\\u001b]0;x\\u0007\n"
    assert message("\x9b http://a:b@c") == f"\\u009b http://{REDACTED}@c"


def test_a_mistaken_command_line_is_told_harmlessly(capsys):
    attack = "\x1b]0;title\x07"
    for words in (["trian" + attack], ["config", "show", attack], ["list", attack], ["eval", "--samples", attack, "x"]):
        assert run(words) == 2
    captured = capsys.readouterr()
    assert "\x1b]" not in captured.out + captured.err and "\x07" not in captured.out + captured.err
    assert "title" in captured.err


def test_what_an_encoding_lacks_is_replaced():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", newline="")
    before, sys.stdout = sys.stdout, file
    try:
        with guarded_streams():
            echo("0.5 ± 0.1 – \u65e5 \ud83d…")
        assert file.errors == "strict"
    finally:
        sys.stdout = before
    file.seek(0)
    assert file.buffer.getvalue() == b"0.5 +- 0.1 - ? \\ud83d...\n"


def test_a_reader_that_has_gone_ends_nothing():
    code = (
        "import sys\n"
        "from memfactory.cli.app import run\n"
        "sys.stdin.read()\n"
        "code = run(['config', 'schema']) or run(['list'])\n"
        "print(code, file=sys.stderr)\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    os.close(reader)
    _, said = process.communicate("", timeout=60)
    assert (process.returncode, said) == (0, "0\n")


class Gone(io.StringIO):
    """A stream that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_closed_stdout_ends_no_tracker(monkeypatch, caplog, tmp_path):
    from memfactory.trackers.base import RunInfo
    from memfactory.trackers.console import ConsoleTracker

    for terminal in (True, False):
        tracker = ConsoleTracker(Console(file=Gone(), force_terminal=terminal))
        tracker.start(RunInfo("run", tmp_path, {}, 3, 0))
        tracker.log(1, {"loss": 1.0, "seconds": 1.0})
        tracker.evaluation(1, {"a/b": 0.5})
        tracker.finish("success", None)
    assert caplog.text == ""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A config of an endpoint whose texts are attacks."""
    monkeypatch.chdir(tmp_path)
    text = "".join(ATTACKS)
    server = ChatServer(lambda request: f"**Answer:** \\boxed{{{text}}} {text}")
    tokenizer = write_tokenizer(tmp_path / "words.json")
    (tmp_path / "c.yaml").write_text(config_text(server.url, tokenizer))
    row = {"context": f"A {text}", "input": f"Which {text}?", "answers": ["x"], "num_docs": 1, "index": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    yield server
    server.close()


def test_texts_of_models_and_documents_are_printed_harmlessly(hostile, capfd):
    question = ["--question", "Which \x1b]0;t\x07?", "--document", "rows.jsonl"]
    assert run(["infer", "c.yaml", *question]) == 0
    assert run(["infer", "c.yaml", *question, "--show-memory"]) == 0
    assert run(["infer", "c.yaml", "--input", "rows.jsonl"]) == 0
    rows = capfd.readouterr()
    assert not harmful(rows.out + rows.err) and "\\u001b]0;title" in rows.out
    hostile.reply = lambda request: 400
    assert run(["eval", "c.yaml", "--data", "rows.jsonl", "--output", "out\u202e"]) == 1
    assert run(["infer", "c.yaml", *question]) == 1
    rows = capfd.readouterr()
    assert not harmful(rows.out + rows.err)


def test_a_terminal_gets_no_sequence_of_a_model(hostile):
    """The same in a pseudo-terminal, where colours and bars are drawn."""
    import pty

    code = (
        "import sys; from memfactory.cli.app import run\n"
        "sys.exit(run(['infer', 'c.yaml', '--question', 'Which', '--document', 'rows.jsonl', '--show-memory']))"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    while piece := read(terminal):
        shown += piece
    os.waitpid(pid, 0)
    text = shown.decode(errors="replace")
    assert "\\u001b]0;title" in text
    assert not harmful(re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[[0-9]*[AK]|\r", "", text))


def read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_a_question_that_is_no_text_is_refused(hostile, capsys):
    assert run(["infer", "c.yaml", "--question", "o\udcf9 ?"]) == 2
    assert "--question is not text in UTF-8" in capsys.readouterr().err
    assert typed("\u00e9 \udcc3\udca9", "--question") == "\u00e9 \u00e9"


@pytest.mark.parametrize("option", ["--document", "--conversation"])
def test_a_text_on_stdin_is_utf_8_or_refused(hostile, capsys, monkeypatch, option):
    hostile.reply = lambda request: "fine"
    for sent, code in (("Zürich".encode("latin-1"), 2), (b"\xef\xbb\xbf" + "Zürich".encode(), 0)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent), encoding="ascii"))
        if option == "--document" or code == 2:
            assert run(["infer", "c.yaml", "--question", "Where?", option, "-"]) == code
    assert f"{option} - is not text in UTF-8" in capsys.readouterr().err
    read = [request["messages"][-1]["content"] for request in hostile.requests]
    assert (option == "--document") == any("Zürich" in prompt and "\ufeff" not in prompt for prompt in read)


def without_strings(code):
    """The code without its comments and strings, docstrings with examples among them; lines keep their numbers."""
    lines = code.splitlines(keepends=True)
    for token in reversed([*tokenize.generate_tokens(io.StringIO(code).readline)]):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            (first, start), (last, end) = token.start, token.end
            kept = lines[first - 1][:start] + "\n" * (last - first) + lines[last - 1][end:]
            lines[first - 1 : last] = kept.splitlines(keepends=True) or [""]
    return "".join(lines)


def test_nothing_is_printed_past_the_guards():
    """Rich's own console, `print` and typer's echo would print what is not ours as it is."""
    own = r"from rich.console import .*\bConsole\b|import rich.console"
    past = re.compile(own + r"|(?<![\w.])print\(|typer\.s?echo\(|click\.")
    root = Path(memfactory.__file__).parent
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        if path.name != "console.py" or path.parent != root
        for number, line in enumerate(without_strings(path.read_text(encoding="utf-8")).splitlines(), start=1)
        if past.search(line)
    ]
    assert found == []


def test_square_brackets_of_others_are_no_markup(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "model: {path: '[/bold]x', random_weights: true}\nagent: memory_agent\nenv: longcontext\n"
        "data: {train: facts, eval: {'[/x] [red]y': facts}}\ntrain: {name: grpo, steps: 1}\n"
    )
    assert run(["train", "c.yaml", "--dry-run"]) == 2
    assert run(["list", "modules"]) == 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "[/bold]x" in captured.out + captured.err
    file = io.StringIO()
    table = Table("[red]a", title="[/b]")
    table.add_row("[/x] [bold]b")
    Console(file=file, width=60).print("[red]c", table)
    assert all(text in file.getvalue() for text in ("[red]a", "[/b]", "[/x] [bold]b", "[red]c"))

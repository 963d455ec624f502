"""No file and no output of a command holds a planted key, for every reply of an endpoint."""

from __future__ import annotations

import base64
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import quote

import pytest

from chat_server import write_tokenizer
from local_server import LocalServer
from memfactory.cli.app import run, show_exception
from memfactory.errors import ConfigError

KEY = "planted/Key+5e1f-0987"
USERINFO = "plantedPw4711"
PLANTED = re.compile(
    "|".join(
        re.escape(form)
        for form in (
            KEY,
            quote(KEY, safe=""),
            quote(KEY),
            base64.b64encode(KEY.encode()).decode()[:-4],
            base64.b64encode(f"Bearer {KEY}".encode()).decode()[12:-4],
            KEY.encode().hex(),
            KEY.encode().hex().upper(),
            "".join(f"%{byte:02X}" for byte in KEY.encode()),
            "".join(f"\\u{ord(sign):04x}" for sign in KEY),
            "\u200b".join(KEY),
            # The beginning of a key reveals too much as well.
            KEY[:12],
            KEY[:12].lower(),
            USERINFO,
            base64.b64encode(f"me:{USERINFO}".encode()).decode()[4:-4],
        )
    ).encode()
)
FORMS = f"{KEY} {quote(KEY, safe='')} {base64.b64encode(KEY.encode()).decode()} {KEY.encode().hex()}"
FORMS += f" {KEY.encode().hex().upper()} {''.join(f'%{byte:02X}' for byte in KEY.encode())}"
FORMS += " " + "".join(f"\\u{ord(sign):04x}" for sign in KEY) + " " + "\u200b".join(KEY)


def completion(content, **message):
    return json.dumps({"choices": [{"message": {"content": content, **message}, "finish_reason": "stop"}]})


# The server's response to a request as (status, headers, body); `request` is all of its text, headers included.
MODES = {
    "echo": lambda request: (200, {}, completion(f"{request} {FORMS}")),
    "answer": lambda request: (200, {}, completion(f"**Answer:** \\boxed{{{KEY}}}")),
    "verdict": lambda request: (200, {}, completion(f"Verdict: yes, {KEY}")),
    "refusal": lambda request: (200, {}, completion(None, refusal=f"not with {FORMS}")),
    "thinking": lambda request: (200, {}, completion("", reasoning_content=request)),
    "no json": lambda request: (200, {}, request + FORMS),
    "vectors": lambda request: (200, {}, json.dumps({"data": [{"index": request, "embedding": [request]}]})),
    "401": lambda request: (401, {}, json.dumps({"error": {"message": f"bad key {FORMS}"}})),
    "400 text": lambda request: (400, {}, request + FORMS),
    "403 cut": lambda request: (403, {}, "x" * 490 + KEY),
    "500": lambda request: (500, {}, json.dumps({"detail": [request, FORMS]})),
    "redirect": lambda request: (307, {"Location": f"http://me:{USERINFO}@other.invalid/{quote(KEY)}?key={KEY}"}, ""),
    "encoding": lambda request: (200, {"Content-Encoding": KEY}, "x"),
    "long encoding": lambda request: (200, {"Content-Encoding": f"br, {KEY}"}, "x"),
    "dropped": lambda request: (0, {}, ""),
    "status line": lambda request: (-1, {}, request),
}


class EchoServer(LocalServer):
    """Responds to each request by `mode`."""

    def __init__(self):
        self.mode, self.requests = "echo", 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.requests += 1
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                request = json.dumps({**dict(self.headers), "body": body})
                status, headers, sent = MODES[server.mode](request)
                if status <= 0:
                    self.wfile.write(self.headers["Authorization"].encode() + b"\r\n\r\n" if status else b"")
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(sent.encode())))
                self.end_headers()
                self.wfile.write(sent.encode())

            def log_message(self, *words):
                pass

        super().__init__(Handler)


@pytest.fixture(scope="module")
def server():
    served = EchoServer()
    yield served
    served.close()


@pytest.fixture
def place(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:{USERINFO}@127.0.0.1:{server.port}/v1")
    write_tokenizer(tmp_path / "words.json")
    rows = [
        {"context": "The code of Ann is nine.", "input": "Which code?", "answers": ["nine"], "num_docs": 1, "index": 0}
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "talk.json").write_text(json.dumps([{"speaker": "Ann", "text": "The code is nine."}]))
    return tmp_path


def endpoint(server, *, more="", address=True):
    at = f"base_url: '{server.url}', " if address else ""
    return f"kind: openai, model: m, {at}api_key_env: MY_KEY, retries: 0, backoff: 0.01, timeout: 2{more}"


def config(place, server, *, agent="name: memory_agent, chunk_tokens: 14", more="", address=True):
    engine = endpoint(server, more=f", tokenizer: '{place / 'words.json'}', send_seed: false", address=address)
    env = "memory_bank, rewards: {em: 1.0}" if "rag" in agent else "longcontext, rewards: {boxed_em: 1.0}"
    (place / "c.yaml").write_text(f"agent: {{{agent}}}\nenv: {{name: {env}}}\nengine: {{{engine}}}\n{more}\n")


def nothing_leaks(place, capfd):
    """Asserts that no file and no output holds the key; returns the output."""
    captured = capfd.readouterr()
    printed = captured.out + captured.err
    for path in (path for path in place.rglob("*") if path.is_file()):
        match = PLANTED.search(path.read_bytes())
        assert not match, f"{path.relative_to(place)}: {path.read_bytes()[max(0, match.start() - 80) : match.end()]!r}"
    match = PLANTED.search(printed.encode())
    assert not match, printed
    return printed


@pytest.mark.parametrize("mode", MODES)
def test_infer_and_eval_leak_nothing(place, server, capfd, mode):
    server.mode, before = mode, server.requests
    config(place, server, address=mode != "echo")
    question = ["--question", "Which code?", "--document", "rows.jsonl"]
    codes = [run(["infer", "c.yaml", *question]), run(["infer", "c.yaml", *question, "--show-memory"])]
    codes.append(run(["infer", "c.yaml", "--input", "rows.jsonl", "--output", "answers.jsonl"]))
    codes.append(run(["eval", "c.yaml", "--data", "rows.jsonl", "--samples", "1", "--output", "out"]))
    printed = nothing_leaks(place, capfd)
    assert "This is a bug" not in printed and "Traceback" not in printed
    assert set(codes) <= {0, 1} and server.requests > before
    assert (place / "out/results.json").is_file()


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_module_an_embedder_and_a_judge_leak_nothing(place, server, capfd, mode):
    server.mode = mode
    module = "{name: recurrent_memory, interface: inference, engine: h}"
    agent = f"name: memory_agent, chunk_tokens: 14, modules: {{memory: {module}}}"
    judge = f"engines: {{h: {{{endpoint(server)}}}, judge: {{{endpoint(server)}}}}}"
    config(place, server, agent=agent, more=judge)
    run(["eval", "c.yaml", "--data", "rows.jsonl", "--samples", "1", "--judge", "--output", "out"])
    embedder = f"memory: {{embedder: {{{endpoint(server)}}}, cache: vectors}}"
    config(place, server, agent="name: naive_rag", more=embedder)
    run(["infer", "c.yaml", "--question", "Which code?", "--conversation", "talk.json", "--output", "talked.jsonl"])
    printed = nothing_leaks(place, capfd)
    assert "This is a bug" not in printed and "Traceback" not in printed


@pytest.mark.parametrize("mode", ["echo", "verdict", "401", "no json"])
def test_a_run_with_a_judge_leaks_nothing(place, server, capfd, mode):
    server.mode = mode
    judge = endpoint(server)
    (place / "t.yaml").write_text(
        "model: {path: tiny, dtype: float32, cpu_threads: 1}\n"
        "agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 8, answer_tokens: 4}\n"
        "env: {name: longcontext, rewards: {judge: 1.0}}\n"
        f"engines: {{judge: {{{judge}}}}}\n"
        "data: {train: {name: facts, rows: 2}}\n"
        "train: {name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, max_rollouts_per_step: 1, "
        "eval_at_start: false, eval_at_end: false}\n"
        "trackers: [console, swanlab]\n"
    )
    code = run(["train", "t.yaml", "output=run", "seed=1"])
    printed = nothing_leaks(place, capfd)
    assert code in (0, 1), printed
    assert "This is a bug" not in printed


def test_a_written_config_reads_the_key_from_the_environment(place, server, capfd, monkeypatch):
    server.mode = "answer"
    config(place, server)
    run(["config", "show", "c.yaml"])
    written = capfd.readouterr().out
    (place / "written.yaml").write_text(written)
    requests = server.requests
    assert run(["infer", "written.yaml", "--question", "Which code?", "--document", "rows.jsonl"]) == 0
    assert server.requests > requests
    assert "MY_KEY" in written
    nothing_leaks(place, capfd)
    monkeypatch.delenv("MY_KEY")
    assert run(["infer", "written.yaml", "--question", "Which code?"]) == 2
    assert "environment variable MY_KEY, which is not set" in capfd.readouterr().err


@pytest.mark.parametrize(
    "key", [f"{KEY}\nsecond{KEY}", f"\u201c{KEY}\u201d", f"{KEY}\u200b", f"{KEY} {KEY}", f"{KEY}\x00x"[:-2] + "\x7f"]
)
@pytest.mark.parametrize("debug", ["0", "1"])
def test_a_bad_key_is_reported_without_it(place, server, capfd, monkeypatch, key, debug):
    monkeypatch.setenv("MY_KEY", key)
    monkeypatch.setenv("MEMFACTORY_DEBUG", debug)
    config(place, server)
    for words in (
        ["infer", "c.yaml", "--question", "x"],
        ["eval", "c.yaml", "--data", "rows.jsonl", "--output", "out"],
    ):
        try:
            assert run(words) == 2
        except ConfigError as error:
            show_exception(type(error), error, error.__traceback__)
    assert "MY_KEY" in nothing_leaks(place, capfd)

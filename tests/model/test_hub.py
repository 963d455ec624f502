"""A hub that cannot be reached is known at once; a slow one is waited for; its cache is used meanwhile."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from memfactory.errors import ConfigError
from memfactory.model import hub
from memfactory.model.codec import FileCodec
from memfactory.model.loading import load_architecture, load_chat, load_model
from memfactory.model.options import ModelConfig


@pytest.fixture
def closed() -> str:
    """The address of a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def slow() -> Iterator[str]:
    """The address of a hub that takes a second and a half for each answer, and has no model."""

    class Slow(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            time.sleep(1.5)
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._away.cache_clear()


def away_from(address: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, float]:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    start = time.monotonic()
    return hub.hub_away(), time.monotonic() - start


def test_a_refused_connection_and_an_unknown_name_are_known_soon(online, closed, monkeypatch):
    for address, words in [(closed, "refused"), ("http://hub.invalid", "hub.invalid: ")]:
        reason, seconds = away_from(address, monkeypatch)
        assert reason is not None and reason.startswith(address) and words in reason
        assert seconds < 8
        # It is remembered.
        assert away_from(address, monkeypatch)[0] == reason


def test_a_slow_hub_without_the_page_is_not_away(online, slow, monkeypatch):
    reason, seconds = away_from(slow, monkeypatch)
    assert reason is None and seconds > 1


def test_offline_mode_and_other_proxies_are_left_to_the_libraries(online, closed, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert away_from(closed, monkeypatch)[0] is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    assert away_from(closed, monkeypatch)[0] is None
    monkeypatch.delenv("ALL_PROXY")
    assert away_from(closed, monkeypatch)[0] is not None


def test_a_tokenizer_of_an_endpoint_is_not_waited_for_either(online, closed, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    with pytest.raises(
        ConfigError, match=f"'nobody/nothing' that measures the chunks .* be reached: {closed}: .*refused"
    ):
        FileCodec("nobody/nothing")
    assert time.monotonic() - start < 15


def python(address: str, home: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Python without offline mode, with a hub at `address` and its cache below `home`."""
    left_out = ("HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in left_out and not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    start = time.monotonic()
    line = [sys.executable, *words]
    done = subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, timeout=250)
    return done, time.monotonic() - start


def test_a_hub_id_without_network_fails_in_seconds_with_one_line(closed, tmp_path):
    (tmp_path / "text.txt").write_text("The code of Alice is seven.")
    infer = ("-m", "memfactory", "infer")
    question = ("--question", "Which?", "--document", "text.txt")
    _, seconds_of_a_path = python(closed, tmp_path, *infer, "tiny", "model.chat_template=./none", *question)
    done, seconds = python(closed, tmp_path, *infer, "nobody/nothing", *question)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "(the hub cannot be reached, and its cache has no such model): http://127.0.0.1:" in done.stderr
    # The libraries' retries took 46 seconds for each of several files; importing them takes some seconds too.
    assert seconds < seconds_of_a_path + 40


def in_cache(name: str, home: Path) -> Path:
    """The folder of the hub's model `name` in the cache below `home`; it does not exist yet."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    return place / "snapshots" / commit


@pytest.fixture
def cache(online, closed, monkeypatch, tmp_path) -> Path:
    """The home of the cache of a hub that is away."""
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_model_in_the_cache_needs_no_hub(cache, small_model_path):
    shutil.copytree(small_model_path, in_cache("owner/name", cache))
    config = ModelConfig(path="owner/name")
    start = time.monotonic()
    assert FileCodec("owner/name").offsets("a b") == [(0, 1), (1, 2), (2, 3)]
    assert (load_architecture(config).hidden_size, load_chat(config).stop_ids) == (64, {2})
    assert time.monotonic() - start < 15


def test_an_adapter_of_a_hub_that_is_away_comes_from_its_cache(cache, closed, small_model_path):
    base = load_model(ModelConfig(path=str(small_model_path), device="cpu"), training=False)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(in_cache("owner/name", cache))
    start = time.monotonic()
    load_model(ModelConfig(path=str(small_model_path), adapter="owner/name", device="cpu"), training=False)
    with pytest.raises(
        ConfigError, match=f"'nobody/nothing' is not a local folder, .*cache has no such adapter.: {closed}: .*refused"
    ):
        load_model(ModelConfig(path=str(small_model_path), adapter="nobody/nothing", device="cpu"), training=False)
    # PEFT's own retries take 23 seconds.
    assert time.monotonic() - start < 15

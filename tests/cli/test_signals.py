"""Ctrl-C, SIGTERM and SIGHUP end every command cleanly, in every phase."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from threading import Event

import pytest

from local_server import LocalServer

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SLOW = """
import time
from pathlib import Path

from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import DATASETS, REWARDS


@DATASETS.register("slow_rows")
class SlowRows(Dataset):
    "Rows that take their time."

    Options = DatasetOptions
    source = "slow rows"

    def rows(self):
        if Path("slow_data").exists():
            Path("reached").touch()
            time.sleep(60)
        return [Row({"context": "One.", "input": "Who?", "answers": ["x"]}, f"row {n}") for n in range(2)]


@REWARDS.register("slow_reward")
class SlowReward(RewardFunction):
    "A reward that takes its time."

    def score(self, episodes):
        Path("reached").touch()
        time.sleep(0.2)
        return [float(n) for n, _ in enumerate(episodes)]
"""
CONFIG = """
plugins: [slow.py]
model: {{path: {model}, cpu_threads: 1}}
agent: {{name: memory_agent, chunk_tokens: 200, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{slow_reward: 1.0}}}}
data: {{train: slow_rows, eval: {{held: slow_rows}}}}
train: {{name: grpo, steps: 50, prompts_per_step: 1, group_size: 2, eval_at_start: false, eval_at_end: false}}
eval: {{metrics: [slow_reward], samples: 40}}
trackers: [console]
"""


@pytest.fixture
def place(tmp_path, small_model_path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "x.yaml").write_text(CONFIG.format(model=small_model_path))
    return tmp_path


def start(place, *words, **options):
    command = [sys.executable, "-m", "memfactory", *words]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    return subprocess.Popen(command, cwd=place, start_new_session=True, **given)


def wait_for(path, process):
    end = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def locks(place):
    return [path.name for path in place.rglob("*.lock")]


@pytest.fixture
def endpoint():
    """An endpoint that never answers; set once it has been asked."""
    asked, over = Event(), Event()

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.set()
            over.wait(60)

        def log_message(self, *_):
            pass

    server = LocalServer(Silent)
    yield server.port, asked
    over.set()
    server.close()


@pytest.mark.parametrize("number", CODES)
def test_infer_is_stopped_by_every_signal(place, endpoint, number):
    port, asked = endpoint
    engine = f"engine={{kind: openai, model: m, base_url: http://127.0.0.1:{port}/v1, api_key_env: null}}"
    (place / "rows.jsonl").write_text(json.dumps({"context": "One.", "input": "Who?", "answers": ["x"]}) + "\n")
    process = start(place, "infer", "tiny", engine, "--input", "rows.jsonl", "--output", "out.jsonl")
    assert asked.wait(100)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == CODES[number], output
    assert "Stopped" in output and "Traceback" not in output
    assert locks(place) == [] and (place / "out.jsonl").read_text() == ""


def test_a_run_that_still_reads_its_data_is_stopped(place):
    (place / "slow_data").touch()
    process = start(place, "train", "x.yaml", "--output", "own")
    wait_for(place / "reached", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "Stopped by SIGTERM." in output and "Traceback" not in output
    assert not (place / "own").exists()


def test_an_evaluation_is_stopped_and_goes_on_later(place):
    process = start(place, "eval", "x.yaml", "--output", "out")
    wait_for(place / "reached", process)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 129, output
    assert "Traceback" not in output and locks(place) == []


@pytest.mark.slow
def test_a_run_whose_terminal_is_gone_saves_its_last_whole_step(place):
    ours, theirs = pty.openpty()
    process = start(place, "train", "x.yaml", "--output", "own", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    wait_for(place / "own" / "metrics.jsonl", process)
    while not (place / "own" / "metrics.jsonl").read_text():
        os.read(ours, 4096)
        time.sleep(0.02)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 130
    [saved] = (place / "own" / "checkpoints").iterdir()
    assert (saved / "COMPLETE").is_file() and locks(place) == []


def test_a_hangup_that_is_ignored_stays_ignored(place, endpoint):
    port, asked = endpoint
    engine = f"engine={{kind: openai, model: m, base_url: http://127.0.0.1:{port}/v1, api_key_env: null}}"
    command = ["nohup", sys.executable, "-m", "memfactory", "infer", "tiny", engine, "--question", "Who?"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert asked.wait(100)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143

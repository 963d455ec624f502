"""Trackers: what is written, what is shown, and that nothing in them can stop a run."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console

from memfactory.trackers.base import RunInfo, Tracker
from memfactory.trackers.console import ConsoleTracker, summary
from memfactory.trackers.fanout import Trackers
from memfactory.trackers.jsonl import JsonlTracker
from memfactory.trackers.options import SwanlabConfig
from memfactory.trackers.swanlab import SwanlabTracker


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def info(folder, step=0, total=10):
    return RunInfo("a-run", folder, {"seed": 0}, total, step)


def test_a_killed_and_resumed_run_has_each_step_exactly_once(tmp_path):
    first = JsonlTracker()
    first.start(info(tmp_path))
    for step in (1, 2, 3):
        first.log(step, {"loss": step / 10})
    # Killed while step 4 was written, with step 2 as its last checkpoint.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    second = JsonlTracker()
    second.start(info(tmp_path, step=2))
    second.log(3, {"loss": 0.9})
    second.finish("success", None)
    assert rows(tmp_path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": 0.9}]


def test_a_new_run_starts_from_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    tracker = JsonlTracker()
    tracker.start(info(tmp_path))
    assert rows(tmp_path) == []


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path):
    tracker = JsonlTracker()
    tracker.start(info(tmp_path))
    tracker.log(1, {"loss": float("nan"), "kl": float("inf"), "reward": 0.5})
    assert rows(tmp_path) == [{"step": 1, "loss": None, "kl": None, "reward": 0.5}]


def test_away_from_a_terminal_a_step_is_one_line_with_reward_parts(tmp_path):
    file, now = io.StringIO(), iter([100.0, 100.0, 200.0, 200.0])
    tracker = ConsoleTracker(Console(file=file, width=300), clock=lambda: next(now))
    tracker.start(info(tmp_path, total=4))
    metrics = {"reward": 0.25, "reward/boxed_em": 0.25, "reward/format": 1.0, "groups/zero_variance": 0.5}
    tracker.log(1, {**metrics, "clip/low": 0.01, "clip/high": 0.02, "seconds": 30.0})
    tracker.log(2, {"reward": 0.5, "seconds": 10.0})
    lines = file.getvalue().splitlines()
    # 3 steps are left at 30 seconds each, then 2 at the mean of 30 and 10; clipped below and above add up.
    assert lines[1] == (
        "step 1/4  reward 0.250 (boxed_em 0.250, format 1.000)  zero variance 50.0%  clipped 3.0%  0:01:30 left"
    )
    assert lines[2] == "step 2/4  reward 0.500  0:00:40 left"


def test_steps_within_a_second_share_a_line_but_the_last_step_shows(tmp_path):
    file = io.StringIO()
    tracker = ConsoleTracker(Console(file=file, width=300), clock=lambda: 5.0)
    tracker.start(info(tmp_path, total=3))
    for step in (1, 2, 3):
        tracker.log(step, {"loss": step})
    assert [line.split()[1] for line in file.getvalue().splitlines()[1:]] == ["1/3", "3/3"]


def test_on_a_terminal_evaluations_stay_above_the_live_display(tmp_path):
    file = io.StringIO()
    tracker = ConsoleTracker(Console(file=file, width=100, force_terminal=True))
    tracker.start(info(tmp_path))
    tracker.log(1, {"reward": 0.5, "seconds": 1.0})
    tracker.status("rolling out: 12 conversations")
    tracker.evaluation(0, {"facts/boxed_em": 0.4375})
    tracker.finish("success", None)
    shown = file.getvalue()
    assert "evaluation after step 0: facts/boxed_em 0.4375" in shown
    assert "rolling out: 12 conversations" in shown
    assert "0.500" in shown
    assert "[dim]" not in shown


def test_unknown_metrics_are_not_shown_and_absent_ones_leave_no_gap():
    assert summary({"something": 1.0}) == []
    assert summary({"loss": 0.125, "tokens_per_second": 1234.5}) == [("loss", "0.125"), ("tokens/s", "1,234")]


class Broken(Tracker):
    """Fails at everything but its start."""

    def start(self, run):
        pass

    def log(self, step, metrics):
        raise OSError("no space left")

    def finish(self, state, error):
        raise RuntimeError("no run")


def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(tmp_path, caplog):
    trackers = Trackers([], tmp_path, {}, 3)
    trackers._trackers.insert(0, Broken())
    with caplog.at_level(logging.WARNING, logger="memfactory"):
        trackers.log(1, {"loss": 1.0})
        trackers.log(2, {"loss": 2.0})
        trackers.finish("success")
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "a tracker failed and the run goes on: Broken: OSError: no space left",
        "a tracker failed and the run goes on: Broken: RuntimeError: no run",
    ]


def test_a_reader_of_the_output_that_goes_away_does_not_stop_the_run(tmp_path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from memfactory.trackers.fanout import Trackers\n"
        "from memfactory.trackers.options import ConsoleConfig\n"
        "trackers = Trackers([ConsoleConfig()], Path(sys.argv[1]), {}, 3)\n"
        "for step in (1, 2, 3):\n"
        "    trackers.evaluation(step, {'x': 0.5})\n"
        "    trackers.log(step, {'loss': 0.5})\n"
        "trackers.finish('success')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_tracker_that_cannot_start_is_left_out(tmp_path, caplog):
    (tmp_path / "swanlab").write_text("a file where the folder should be")
    trackers = Trackers([SwanlabConfig()], tmp_path, {}, 3)
    trackers.log(1, {"loss": 1.0})
    trackers.finish("success")
    assert rows(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert "SwanlabTracker: FileExistsError" in caplog.text


@pytest.fixture
def no_keys(monkeypatch):
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)


@pytest.mark.usefixtures("no_keys")
def test_swanlab_online_without_a_key_logs_offline_into_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SWANLAB_PROJECT", "what transformers documents")
    hook = sys.excepthook
    tracker = SwanlabTracker(SwanlabConfig(mode="online"))
    tracker.start(info(tmp_path))
    tracker.log(1, {"reward": 0.5, "kl": float("nan")})
    tracker.evaluation(1, {"facts/boxed_em": 0.5})
    tracker.finish("success", None)
    found = {path.name for path in (tmp_path / "swanlab").rglob("*") if path.is_file()}
    assert any(name.endswith(".swanlab") for name in found)
    assert "requirements.txt" not in found
    assert "SWANLAB_API_KEY is not set" in caplog.text
    assert sys.excepthook is hook


def test_swanlab_disabled_writes_nothing(tmp_path):
    tracker = SwanlabTracker(SwanlabConfig(mode="disabled"))
    tracker.start(info(tmp_path))
    tracker.log(1, {"reward": 0.5})
    tracker.finish("success", None)
    assert list(tmp_path.iterdir()) == []

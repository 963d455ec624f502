"""Errors in a run: whole steps are kept whatever fails, every rank's error is told, no rank outlives its launcher."""

import json
import logging
import os
import signal
import time
from pathlib import Path

import pytest
from test_grpo import CONFIG, make, weights_of  # noqa: F401 - `make` is a fixture

from memfactory.cli.app import run as command
from memfactory.cli.output import start_logging
from memfactory.envs.rewards.base import RewardFunction
from memfactory.errors import EngineError, MemFactoryError, PluginError
from memfactory.policy import processes as launched
from memfactory.registry import REWARDS
from processes import in_processes

FAILING = {"calls": 0, "error": None}


@REWARDS.register("test_failing")
class Failing(RewardFunction):
    """Attempt number mod 2, until the third call, which raises."""

    def score(self, episodes):
        FAILING["calls"] += 1
        if FAILING["calls"] == 3:
            raise FAILING["error"]
        return [float(episode.index % 2) for episode in episodes]


@pytest.mark.parametrize("error", [ZeroDivisionError("a plugin's"), EngineError("a judge's"), RuntimeError("CUDA's")])
def test_whatever_fails_the_whole_steps_are_kept(make, caplog, error):  # noqa: F811
    FAILING.update(calls=0, error=error)
    trainer = make("test_failing", "train.save_every=0", "train.steps=5")
    with pytest.raises(EngineError if isinstance(error, EngineError) else PluginError, match=str(error)) as caught:
        trainer.train()
    assert error in (caught.value, caught.value.__cause__)
    assert [path.name for path in (trainer.run.folder / "checkpoints").iterdir()] == ["step-2"]
    assert "the state after step 2 is saved; --resume continues from there" in caplog.text


def test_a_step_is_whole_also_where_its_metrics_cannot_be_logged(make, monkeypatch):  # noqa: F811
    trainer = make("test_letters", "train.save_every=0")

    def fails(step, metrics):
        raise TypeError("no JSON")

    monkeypatch.setattr(trainer.run, "log", fails)
    with pytest.raises(TypeError, match="no JSON"):
        trainer.train()
    assert [path.name for path in (trainer.run.folder / "checkpoints").iterdir()] == ["step-1"]


def test_a_step_that_failed_between_its_updates_is_not_taken_for_a_whole_one(make, monkeypatch):  # noqa: F811
    trainer = make("test_letters", "train.save_every=0", "train.minibatches=2")
    update, calls = trainer.trained.update, []

    def fails_at_the_fourth(turns):
        calls.append(turns)
        if len(calls) == 4:
            raise ValueError("broken")
        return update(turns)

    monkeypatch.setattr(trainer.trained, "update", fails_at_the_fourth)
    with pytest.raises(ValueError, match="broken"):
        trainer.train()
    assert not (trainer.run.folder / "checkpoints").exists()


def test_a_state_that_cannot_be_saved_hides_no_error(make, monkeypatch, caplog):  # noqa: F811
    FAILING.update(calls=0, error=ValueError("the plugin's"))
    trainer = make("test_failing", "train.save_every=0", "train.steps=5")

    def full(folder):
        raise MemFactoryError("the disk is full")

    monkeypatch.setattr(trainer.trained, "save_masters", full)
    with pytest.raises(PluginError, match="ValueError: the plugin's"):
        trainer.train()
    assert "the state after step 2 could not be saved" in caplog.text and "the disk is full" in caplog.text


# Several processes


@REWARDS.register("test_fails_in_rank_one")
class FailsInRankOne(RewardFunction):
    """A helper of the second process goes away in its second step."""

    calls = 0

    def score(self, episodes):
        type(self).calls += 1
        if os.environ["RANK"] == "1" and self.calls == 2:
            raise EngineError("the judge of this process is down")
        return [float(episode.index % 2) for episode in episodes]


@pytest.fixture
def config(tmp_path, small_model_path, monkeypatch):
    rows = [{"context": f"Fact {n}.", "input": f"What is {n}", "answers": ["x"], "index": n} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=small_model_path, reward="test_fails_in_rank_one"))
    # As torchrun names the file of each process.
    (tmp_path / "attempt_0" / "0").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "0" / "error.json"))
    return tmp_path


def said(folder):
    return [" ".join((folder / f"rank-{rank}.txt").read_text().split()) for rank in (0, 1)]


@pytest.mark.slow
def test_the_error_of_any_rank_is_told_with_its_rank_and_the_state_is_kept(config):
    words = ["train", str(config / "run.yaml"), "--output", str(config / "run"), "train.save_every=0"]
    codes = in_processes(2, lambda rank: command(words), config)
    first, second = said(config)
    assert codes == [1, 1], first + second
    assert "error: rank 1: the judge of this process is down" in second
    assert "error: rank 0: another process of this run has ended" in first
    assert (first + second).count("the judge of this process is down") == 1
    assert "Traceback" not in first + second and "report it" not in first + second
    assert [path.name for path in (config / "run" / "checkpoints").iterdir()] == ["step-1"]


@pytest.mark.slow
def test_a_mistake_that_all_ranks_find_is_told_once(config):
    words = ["train", str(config / "run.yaml"), "train.stepss=3"]
    codes = in_processes(2, lambda rank: command(words), config)
    assert codes == [2, 2]
    assert "".join(said(config)).count("unknown key") == 1


def test_a_rank_whose_launcher_was_killed_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(launched, "POLL", 0.02)
    monkeypatch.setenv("WORLD_SIZE", "2")
    launcher = os.fork()
    if launcher == 0:
        if os.fork() == 0:
            _rank(tmp_path)
        time.sleep(60)
        os._exit(0)
    _wait_for(tmp_path / "begun")
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    _wait_for(tmp_path / "asked to stop")


def _rank(folder: Path):
    signal.signal(signal.SIGTERM, lambda number, frame: ((folder / "asked to stop").touch(), os._exit(0)))
    with launched.watched_launcher():
        (folder / "begun").touch()
        time.sleep(20)
    os._exit(1)


def _wait_for(path: Path):
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.01)


def test_a_warning_of_another_rank_is_told_with_its_rank_and_once(config, monkeypatch):
    monkeypatch.setattr(logging.getLogger("memfactory"), "handlers", [])

    def warned(rank):
        start_logging()
        for text in ("what all of them see", f"what number {rank} sees"):
            logging.getLogger("memfactory").warning(text)
        return 0

    assert in_processes(3, warned, config) == [0, 0, 0]
    first, second = said(config)
    third = (config / "rank-2.txt").read_text()
    assert "WARNING: what all of them see WARNING: what number 0 sees" in first and "rank" not in first
    assert "rank 1: WARNING: what number 1 sees" in second and "rank 2: WARNING: what number 2 sees" in third
    assert (second + third).count("what all of them see") <= 1


def test_a_plugin_that_ends_the_process_loses_no_step(make):  # noqa: F811
    FAILING.update(calls=0, error=SystemExit(3))
    trainer = make("test_failing", "train.save_every=0", "train.steps=5")
    with pytest.raises(
        PluginError, match=r"'test_failing' failed in scoring at .*test_lost_work.py:\d+: SystemExit: 3"
    ):
        trainer.train()
    assert [path.name for path in (trainer.run.folder / "checkpoints").iterdir()] == ["step-2"]

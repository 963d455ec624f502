"""Each run has a folder of its own, which nobody else writes while it goes on."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import memfactory.run_folder as run_folder_module
from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.files.json_lines import JsonLinesWriter
from memfactory.files.locks import InUseError, file_lock, folder_lock
from memfactory.memory.bank import BankSource
from memfactory.run_folder import earlier_runs, open_run_folder
from memfactory.training import run_training

CONFIG = """
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 200, memory_tokens: 4, answer_tokens: 4}}
env: longcontext
data: {{train: {{name: facts, rows: 4}}}}
train: {{name: grpo, steps: 1, prompts_per_step: 1, group_size: 2}}
trackers: []
"""


@pytest.fixture
def place(tmp_path, monkeypatch, small_model_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(CONFIG.format(model=small_model_path))
    return tmp_path


@pytest.fixture
def one_second(monkeypatch):
    """A clock that stands still."""

    class Still(run_folder_module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 3, 4, 5, 6, 7, tzinfo=tz)

    monkeypatch.setattr(run_folder_module, "datetime", Still)


def test_runs_of_one_second_have_folders_of_their_own(place, one_second):
    def take(seed):
        with open_run_folder(load_config("x.yaml", [f"seed={seed}"]), None) as own:
            (own.folder / "config.yaml").write_text(str(seed))
            return own.folder.name

    load_config("x.yaml")
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(take, range(4)))
    assert sorted(names) == ["x-20260304-050607", *(f"x-20260304-050607-{n}" for n in (2, 3, 4))]
    assert [path.name for path in earlier_runs(place / "runs", "x")] == sorted(names)
    assert [(place / "runs" / name / "config.yaml").read_text() for name in names] == ["0", "1", "2", "3"]


def test_resume_finds_the_run_of_the_same_seed(place, one_second):
    for seed in (1, 2, 3):
        resolved = load_config("x.yaml", [f"seed={seed}"])
        with open_run_folder(resolved, None) as own:
            (own.folder / "config.yaml").write_text(resolved.to_yaml())
    with open_run_folder(load_config("x.yaml", ["seed=2"]), "auto") as own:
        assert own.folder.name == "x-20260304-050607-2"
    with pytest.raises(ConfigError, match=r"050607-3 cannot be resumed.*\nseed: 3 in .*, now 4"):
        with open_run_folder(load_config("x.yaml", ["seed=4"]), "auto"):
            pass


def test_names_with_pattern_signs_are_found_on_resume(place, one_second):
    for name in ("a[1]*", "a1"):
        shutil.copy(place / "x.yaml", place / f"{name}.yaml")
    with open_run_folder(load_config("a[1]*.yaml"), None) as own:
        (own.folder / "config.yaml").write_text(load_config("a[1]*.yaml").to_yaml())
    with open_run_folder(load_config("a[1]*.yaml"), "auto") as again:
        assert again.folder == own.folder


def test_a_run_that_is_going_on_is_neither_joined_nor_resumed(place, capsys):
    with folder_lock(place / "own"):
        for words in ([], ["--resume"], ["--resume", "own"]):
            assert run(["train", "x.yaml", "--output", "own", *words]) == 1
            told = capsys.readouterr().err
            assert f"own is being written by process {os.getpid()} on" in told and "Traceback" not in told
    assert not (place / "own" / "config.yaml").exists()


def test_resume_without_an_earlier_run_says_that_a_new_one_starts(place, capsys, caplog):
    for words, told in (
        (["--resume"], "runs holds no earlier run of x, so a new one starts"),
        (["--output", "own", "--resume"], "own holds no earlier run, so a new one starts"),
    ):
        assert run(["train", "x.yaml", *words]) == 0
        assert told in capsys.readouterr().err + caplog.text


def test_a_folder_that_was_made_in_vain_is_removed(place, capsys):
    shutil.copytree(load_config("x.yaml").config.model.path, place / "broken")
    (place / "broken" / "model.safetensors").write_bytes(b"no weights")
    assert run(["train", "x.yaml", "model.path=broken"]) == 2
    assert not list((place / "runs").iterdir())


def test_a_run_whose_folder_is_deleted_does_not_end_as_done(place, monkeypatch, capsys):
    from memfactory.training import LiveRun

    log = LiveRun.log

    def delete(self, step, metrics):
        log(self, step, metrics)
        shutil.rmtree(self.folder)

    monkeypatch.setattr(LiveRun, "log", delete)
    assert run(["train", "x.yaml", "--output", "own", "train.steps=2"]) == 1
    shown = capsys.readouterr()
    assert "the run folder own was deleted, moved or replaced" in shown.err and "Done" not in shown.out
    assert (place / "own" / "checkpoints" / "step-1" / "COMPLETE").is_file()


def test_an_output_of_eval_or_infer_has_one_writer(place, capsys, small_model_path):
    assert run(["data", "export", "facts", "rows=2", "--output", "rows.jsonl"]) == 0
    with folder_lock(place / "out"), file_lock(place / "answers.jsonl"):
        assert run(["eval", "x.yaml", "--data", "rows.jsonl", "--output", "out"]) == 1
        assert "--output out is being written by process" in capsys.readouterr().err
        assert run(["infer", "x.yaml", "--input", "rows.jsonl", "--output", "answers.jsonl"]) == 1
        assert "--output answers.jsonl is being written by process" in capsys.readouterr().err
    assert list((place / "out").iterdir()) == []


def test_a_file_of_lines_has_one_writer(tmp_path):
    with JsonLinesWriter(tmp_path / "a.jsonl") as first:
        first.append({"a": 1})
        with pytest.raises(InUseError, match=r"a\.jsonl is being written by another process"):
            JsonLinesWriter(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == '{"a": 1}\n'


def test_a_bank_has_one_saver(tmp_path):
    bank = BankSource().open([])
    bank.save(tmp_path / "bank")
    with file_lock(tmp_path / "bank" / "manifest.json"), pytest.raises(InUseError, match="the memory bank"):
        bank.save(tmp_path / "bank")
    assert [path.name for path in (tmp_path / "bank").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "1"}, {"RANK": "x"}])
def test_a_rank_left_over_in_the_environment_silences_nothing(place, variables):
    command = [sys.executable, "-m", "memfactory", "train", "nope.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=60)
    assert done.returncode == 2
    assert "there is no such config file" in done.stderr


def test_the_folder_of_a_run_holds_no_lock_once_it_has_ended(place):
    folder = run_training(load_config("x.yaml"))
    assert not (folder / ".lock").exists()
    assert json.loads((folder / "metrics.jsonl").read_text())["step"] == 1

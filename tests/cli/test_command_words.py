"""Words of the command line: overrides for `config validate`, paths with an equals sign, and all that `list` shows."""

from typing import get_args

import pytest

from memfactory.cli.app import _with_values, run
from memfactory.config.describe import OPTIMIZERS
from memfactory.config.optimizer import OptimizerKind

BASE = "model: tiny\nagent: memory_agent\nenv: longcontext\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(BASE, encoding="utf-8")
    return tmp_path


def test_validate_takes_overrides_for_all_of_its_configs(folder, capsys):
    (folder / "y.yaml").write_text(BASE, encoding="utf-8")
    assert run(["config", "validate", "x.yaml", "agent.chunk_tokens=9", "y.yaml"]) == 0
    assert capsys.readouterr().out.splitlines() == ["x.yaml: valid", "y.yaml: valid"]
    assert run(["config", "validate", "x.yaml", "y.yaml", "agent.chunk_tokns=9"]) == 2
    assert capsys.readouterr().err.count("agent.chunk_tokns=9: unknown key; did you mean 'chunk_tokens'?") == 2


def test_validate_without_a_config_says_so(folder, capsys):
    assert run(["config", "validate", "agent.chunk_tokens=9"]) == 2
    assert "nothing but overrides is given (agent.chunk_tokens=9)" in capsys.readouterr().err


def test_a_path_with_an_equals_sign_is_a_path_where_it_exists(folder, capsys):
    (folder / "lr=1e-05.yaml").write_text(BASE, encoding="utf-8")
    (folder / "runs").mkdir()
    (folder / "runs" / "lr=1e-05").mkdir()
    assert run(["config", "validate", "lr=1e-05.yaml"]) == 0
    assert run(["eval", "runs/lr=1e-05", "--data", "facts"]) == 2
    assert "this folder is not a run" in capsys.readouterr().err
    assert run(["eval", "runs/lr=2e-05", "--data", "facts"]) == 2
    assert "a path with '=' in it must exist" in capsys.readouterr().err
    assert _with_values(["train", "x.yaml", "--resume", "runs/lr=1e-05"])[2:] == ["--resume", "runs/lr=1e-05"]
    assert _with_values(["train", "x.yaml", "--resume", "train.steps=3"])[2:] == ["--resume=auto", "train.steps=3"]


def test_a_path_that_is_not_there_is_no_unknown_key(folder, capsys):
    assert run(["eval", "tiny", "runs/lr=2e-05"]) == 2
    assert "no file or folder has this name, and 'runs/lr' is not a key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "names", "option"),
    [
        ("engines", ("hf", "vllm", "vllm_server", "openai"), "max_batch_tokens"),
        ("embedders", ("lexical", "hf", "openai"), "ngram_weight"),
        ("trackers", ("swanlab", "jsonl", "console"), "workspace"),
        ("optimizers", ("adamw", "adamw_8bit", "adamw_offload", "auto"), "learning_rate"),
        ("objectives", ("ppo", "gspo"), None),
    ],
)
def test_list_shows_what_can_be_chosen_with_its_options(folder, capsys, kind, names, option):
    assert run(["list", kind]) == 0
    brief = capsys.readouterr().out
    assert all(f"  {name} " in brief for name in names) and (option is None or option not in brief)
    assert run(["list", kind, "--verbose"]) == 0
    assert option is None or f"    {option}" in capsys.readouterr().out
    assert run(["list"]) == 0
    assert f"{kind}\n" in capsys.readouterr().out


def test_every_optimizer_is_listed():
    assert tuple(OPTIMIZERS) == get_args(OptimizerKind)

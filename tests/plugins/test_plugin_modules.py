"""Plugins that are named as modules: found beside the config, kept with the run as they ran, never taken for others."""

import sys
from pathlib import Path

import pytest
from test_trust import CONFIG, REWARD, place  # noqa: F401 - `place` is a fixture

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.registry import REWARDS
from memfactory.run_folder import open_run_folder
from memfactory.training import run_training


@pytest.fixture
def user(place, small_model_path, monkeypatch):  # noqa: F811
    """Writes a module with a reward of its own name, and a config that names it."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def write(module, folder="."):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, f"{module}.py").write_text(REWARD.format(name=module))
        config = Path(folder, f"{module}.yaml")
        config.write_text(CONFIG.format(plugin=module, model=small_model_path, reward=module))
        return str(config)

    return write


def test_a_module_in_the_working_directory_is_found_for_any_config(user):
    config = Path(user("of_the_directory"))
    (config.parent / "configs").mkdir()
    load_config(config.rename("configs/elsewhere.yaml"))
    assert "of_the_directory" in REWARDS.names()


def test_a_module_is_kept_with_its_run(user):
    config = user("kept_with_the_run")
    assert run(["train", config, "--output", "own"]) == 0
    (copy,) = Path("own/plugins").iterdir()
    assert copy.read_text() == Path("kept_with_the_run.py").read_text()
    assert f"- plugins/{copy.name}" in Path("own/config.yaml").read_text()
    Path("kept_with_the_run.py").unlink()
    assert run(["eval", "own", "--limit", "1", "--output", "out"]) == 0


def test_a_run_keeps_the_plugin_that_it_was_started_with(user):
    resolved = load_config(user("changed_meanwhile"), ["output=own"], command="train")
    source = Path("changed_meanwhile.py").read_text()
    Path("changed_meanwhile.py").write_text("raise ValueError\n")
    (copy,) = (run_training(resolved) / "plugins").iterdir()
    assert copy.read_text() == source


def test_a_module_that_stays_the_same_is_not_told_on_resume(user, caplog):
    config = user("stays_the_same")
    run_training(load_config(config, ["output=own"], command="train"))
    resolved = load_config(config, ["output=own", "train.steps=2"], command="train")
    with open_run_folder(resolved, "auto"):
        assert "was started with the plugins" not in caplog.text


def test_two_modules_of_one_name_are_no_one_module(user):
    load_config(user("of_two_users", "one"))
    second = user("of_two_users", "two")
    load_config(second)
    Path("two/of_two_users.py").write_text(REWARD.format(name="of_the_second"))
    with pytest.raises(ConfigError, match=r"another module of that name is loaded already, from .*one"):
        load_config(second)

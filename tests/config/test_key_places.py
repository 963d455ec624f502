"""A key or an option that does not exist where it was written is named where it does."""

import sys

import pytest

from memfactory.cli import main
from memfactory.config import load_config
from memfactory.config.key_places import keys_called
from memfactory.errors import ConfigError


def test_a_key_is_found_in_every_section_and_component():
    assert keys_called("group_size") == ["train.group_size"]
    assert keys_called("chunk_tokens")[0] == "agent.chunk_tokens"
    assert keys_called("temperature")[0] == "train.temperature" and keys_called("steps")[0] == "train.steps"
    assert keys_called("rank") and keys_called("nothing_of_the_kind") == []


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--group_size", "An override is written train.group_size=VALUE."),
        ("--chunk-tokens", "An override is written agent.chunk_tokens=VALUE."),
        ("--train.steps", "An override is written train.steps=VALUE."),
        ("--nothing-of-the-kind", "An override is written KEY=VALUE."),
        ("--resum", "did you mean '--resume'?"),
    ],
)
def test_an_option_that_is_an_override_is_hinted_at_by_its_whole_key(monkeypatch, capsys, word, told):
    monkeypatch.setattr(sys, "argv", ["memfactory", "train", "tiny", word, "4"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and told in " ".join(capsys.readouterr().err.split())


def test_an_override_of_a_lone_key_says_where_it_stands():
    with pytest.raises(ConfigError, match=r"unknown key; there is 'train\.group_size'\."):
        load_config("tiny", ["group_size=4"])

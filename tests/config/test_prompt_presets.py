"""Wordings that a config names instead of writing them out."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import ValidationError

from memfactory.cli.app import run
from memfactory.components import ModuleOptions
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.modules.recurrent_memory import PRESETS, RecurrentMemoryOptions

MEMAGENT = PRESETS["memagent"]["prompts"]


class OnePromptOptions(ModuleOptions):
    """Options of a module with one prompt and a short form of it."""

    presets = MappingProxyType({"short": {"prompt": "Say it.", "max_tokens": 8}})

    prompt: str = "Say at length what you remember."
    max_tokens: int = 100


def config(tmp_path: Path, agent: str) -> Any:
    path = tmp_path / "run.yaml"
    path.write_text(f"agent: {agent}\nenv: longcontext\n")
    return load_config(path)


@pytest.mark.parametrize(
    "agent",
    [
        "{name: memory_agent, prompts: memagent}",
        "{name: memory_agent, modules: {memory: {prompts: memagent}}}",
    ],
)
def test_a_preset_stands_for_its_prompts(tmp_path: Path, agent: str) -> None:
    resolved = config(tmp_path, agent)
    (module,) = resolved.values["agent"]["modules"].values()
    # Written out, so that a run stays what it was whatever becomes of the preset.
    assert {key: module["prompts"][key] for key in ("update", "answer")} == MEMAGENT


def test_a_preset_has_the_information_of_the_prompts_it_replaces() -> None:
    options = RecurrentMemoryOptions(prompts="memagent")
    assert options.prompts.order == "memory_first"
    assert options.requested_form == "boxed"
    assert MEMAGENT["update"].endswith("Updated memory:") and MEMAGENT["answer"].endswith("Your answer:")


def test_options_beside_a_preset_win() -> None:
    options = OnePromptOptions.model_validate({"prompts": "short", "max_tokens": 20})
    assert (options.prompt, options.max_tokens) == ("Say it.", 20)


def test_a_preset_of_the_other_order_is_refused() -> None:
    with pytest.raises(ValidationError, match="the update prompt is memory_first, but `order` is chunk_first"):
        RecurrentMemoryOptions(prompts="memagent", order="chunk_first")


def test_an_unknown_preset_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no preset of prompts is called 'memagnt'; did you mean 'memagent'"):
        config(tmp_path, "{name: memory_agent, prompts: memagnt}")
    with pytest.raises(ConfigError, match="this module has no presets"):
        config(tmp_path, "{name: memory_r1, modules: {extractor: {prompts: memagent}}}")


def test_the_list_shows_the_presets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["list", "modules", "--verbose"]) == 0
    assert "presets of prompts: memagent" in capsys.readouterr().out

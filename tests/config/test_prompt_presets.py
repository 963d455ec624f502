"""Wordings that a config names instead of writing them out."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import ValidationError

from memfactory.cli.app import run
from memfactory.components import ModuleOptions
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.formats.recurrent_prompts import PRESETS
from memfactory.modules.recurrent_memory import RecurrentMemoryOptions
from memfactory.text import fill

MEMAGENT = PRESETS["memagent"]["prompts"]
CONFIGS = Path(__file__).parents[2] / "configs"
WORDED = ("prompt", "prompts", "empty_memory", "order", "distill", "format")
"""The options of modules that word their prompts."""
DIGESTS = {
    "memagent_original": "181240d72fc6c79a",
    "memagent_qwen3_1.7b": "85ca1bc68ef7b789",
    "memagent_qwen3_4b": "85ca1bc68ef7b789",
    "memagent_qwen3_4b_chunk_first": "838da45d806cfc45",
    "memory_r1": "b02e55bdd11294ae",
    "memory_r1_answer": "b02e55bdd11294ae",
    "memory_r1_faithful": "916bf321cda0f198",
    "memory_r1_faithful_answer": "916bf321cda0f198",
    "quickstart": "85ca1bc68ef7b789",
    "quickstart_memory_r1": "b02e55bdd11294ae",
    "quickstart_rmm": "ef9e1c375e145c66",
    "quickstart_rmm_linear": "5a915b7fdf5f307d",
    "rmm": "ef9e1c375e145c66",
    "rmm_linear": "5a915b7fdf5f307d",
    "rmm_linear_faithful": "5a915b7fdf5f307d",
    "tiny_sft": "85ca1bc68ef7b789",
}
"""SHA-256 of those options before modules had presets: a run of these configs stays comparable."""


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
        config(tmp_path, "{name: memory_r1, modules: {retriever: {prompts: memagent}}}")


def test_the_list_shows_the_presets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["list", "modules", "--verbose"]) == 0
    assert "presets of prompts: default, memagent, short" in capsys.readouterr().out


def test_the_short_prompts_are_plain_words_with_the_chunk_first() -> None:
    options = RecurrentMemoryOptions(prompts="short")
    assert (options.order, options.prompts.order, options.empty_memory) == ("chunk_first", "chunk_first", "nothing yet")
    assert options.requested_form == "plain"
    values = {"question": "Where is Ada?", "memory": options.empty_memory, "section": "Ada is in Oslo.\n"}
    assert fill(options.prompts.update, values) == (
        "Ada is in Oslo.\n\n\n"
        "Question: Where is Ada?\nNote so far: nothing yet\nCopy the sentence that answers the question:"
    )
    values["memory"] = "Ada is in Oslo."
    assert fill(options.prompts.answer, values) == (
        "Ada is in Oslo.\n\nQuestion: Where is Ada?\nAnswer in a few words:"
    )


def test_the_preset_called_default_is_the_modules_own_wording() -> None:
    assert RecurrentMemoryOptions(prompts="default") == RecurrentMemoryOptions()
    chunk_first = RecurrentMemoryOptions(order="chunk_first")
    assert RecurrentMemoryOptions(prompts="default", order="chunk_first") == chunk_first


def test_short_prompts_are_refused_a_reward_of_the_box(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = "model: tiny\nagent: {name: memory_agent, prompts: short}\ntrain: grpo\ndata: {train: facts}\n"
    for reward in ("em", "f1", "sub_em", "boxed_em"):
        path.write_text(f"{text}env: {{name: longcontext, rewards: {{{reward}: 1}}}}\n")
        assert load_config(path, command="train").config.agent.modules["memory"].options.order == "chunk_first"
    path.write_text(f"{text}env: {{name: longcontext, rewards: {{format: 1}}}}\n")
    with pytest.raises(ConfigError, match=r"reads an answer inside .*boxed.* never asks for one"):
        load_config(path, command="train")


@pytest.mark.parametrize("name", DIGESTS)
def test_the_prompts_of_the_first_configs_stay_as_they_were(name: str) -> None:
    modules = load_config(CONFIGS / f"{name}.yaml").values["agent"]["modules"]
    texts = {slot: {key: module[key] for key in WORDED if key in module} for slot, module in modules.items()}
    text = json.dumps(texts, sort_keys=True, ensure_ascii=False)
    assert sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]


A_PRESET = "expected the name of a preset of prompts (default, {}short){}; given "
TEXTS = " or a mapping of its texts"


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ("{name: memory_agent, prompts: 3}", f"agent.prompts: {A_PRESET.format('memagent, ', TEXTS)}3"),
        (
            "{name: memory_agent, modules: {memory: {prompts: [short]}}}",
            f"agent.modules.memory.prompts: {A_PRESET.format('memagent, ', TEXTS)}['short']",
        ),
        ("{name: memory_agent, prompts: true}", f"agent.prompts: {A_PRESET.format('memagent, ', TEXTS)}true"),
        (
            "{name: memory_r1, modules: {answerer: {prompts: 3}}}",
            f"agent.modules.answerer.prompts: {A_PRESET.format('', '')}3",
        ),
        ("{name: memory_r1, prompts: 3}", "agent.prompts: expected the name of a preset, for all modules (default, "),
        ("{name: memory_agent, prompts: {update: 3}}", "agent.prompts.update: expected text; given 3"),
        (
            "{name: memory_agent, prompts: {update: '{section} {memory} {question}'}}",
            "agent.prompts: the update prompt is chunk_first, but `order` is memory_first",
        ),
        ("{name: memory_r1, modules: {retriever: {prompts: 3}}}", "agent.modules.retriever.prompts: unknown key"),
    ],
)
def test_a_preset_of_the_wrong_type_is_told_with_the_names(tmp_path: Path, agent: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, agent)
    assert f"run.yaml:1: {told}" in str(caught.value)

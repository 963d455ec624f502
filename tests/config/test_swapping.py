"""Any module fits any slot whose contract it meets: one line swaps it, and options never reach its successor."""

from pathlib import Path
from typing import ClassVar

import pytest

from memfactory.config import load_config
from memfactory.config.agent_file import write_agent_file
from memfactory.config.slots import fits
from memfactory.dialogue import Agent, Module
from memfactory.errors import ConfigError
from memfactory.registry import AGENTS, MODULES
from memfactory.roles import Reader

AGENT_PARTS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "agents").glob("*.yaml"))

# The agents whose file names a preset of prompts for all modules, whichever they are.
AGENT_PROMPTS = {"smollm2_reader": "short"}
BUILT_IN = [name for name in MODULES.names() if MODULES.get(name).__module__.startswith("memfactory.modules")]


def written(folder: Path, agent: str, rest: str = "") -> str:
    (folder / "x.yaml").write_text(f"model: tiny\nagent: {agent}\nenv: longcontext\n{rest}", encoding="utf-8")
    return "x.yaml"


def swaps():
    """Every shipped agent, each of its slots, and every module that fits there."""
    for part in AGENT_PARTS:
        agent = AGENTS.get(load_config_of(part).agent.name)
        for slot in agent.slots:
            for name in BUILT_IN:
                if fits(MODULES.get(name), agent, slot):
                    yield part, slot, name


def load_config_of(part: str):
    return load_config("tiny", [f"agent={part}"]).config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(part: str, slot: str, name: str):
    """A module of another name has its own defaults, worded by the preset that the agent names; one that stays has the
    part's options."""
    before = load_config_of(part).agent.modules[slot]
    if before.name == name:
        return before.options
    options, preset = MODULES.options(name), AGENT_PROMPTS.get(part)
    return options.model_validate({"prompts": preset} if preset in options.preset_names() else {})


@pytest.mark.parametrize(("part", "slot", "name"), list(swaps()))
def test_one_line_swaps_a_module_in_every_form(folder, part, slot, name):
    files = (
        f"{{base: {part}, modules: {{{slot}: {name}}}}}",
        f"{{base: {part}, modules: {{{slot}: {{name: {name}}}}}}}",
        f"{{name: {part}, modules: {{{slot}: {name}}}}}",
    )
    overrides = (
        [f"agent.modules.{slot}={name}"],
        [f"agent.modules.{slot}.name={name}"],
        [f"agent.modules.{slot}={{name: {name}}}"],
        [f"agent.modules={{{slot}: {name}}}"],
        [f"agent.modules={{{slot}: {{name: {name}}}}}"],
        [f"agent={{modules: {{{slot}: {name}}}}}"],
    )
    found = [load_config(written(folder, agent)).config.agent for agent in files]
    config = written(folder, part)
    found += [load_config(config, words).config.agent for words in overrides]
    (folder / "y.yaml").write_text(f"base: x\nagent: {{modules: {{{slot}: {name}}}}}\n", encoding="utf-8")
    found.append(load_config("y.yaml").config.agent)
    before = load_config(config).config.agent
    for agent in found:
        assert agent.modules[slot].name == name
        assert agent.modules[slot].options == expected(part, slot, name)
        assert {**agent.modules, slot: None} == {**before.modules, slot: None}
        assert (agent.name, agent.options) == (before.name, before.options)


def test_options_of_the_successor_count_in_every_layer(folder):
    (folder / "x.yaml").write_text("model: tiny\nagent: memory_agent\nenv: longcontext\n", encoding="utf-8")
    swap = "base: x\nagent: {modules: {memory: full_context_answer}, keep: first}\n"
    (folder / "y.yaml").write_text(swap, encoding="utf-8")
    (folder / "z.yaml").write_text("base: y\nagent: {context_tokens: 50}\n", encoding="utf-8")
    options = load_config("z.yaml", ["agent.max_tokens=7"]).config.agent.modules["memory"].options
    assert (options.keep, options.context_tokens, options.max_tokens) == ("first", 50, 7)


def test_going_back_to_a_module_does_not_bring_its_old_options(folder):
    (folder / "x.yaml").write_text(
        "model: tiny\nagent: {name: memory_agent, chunk_tokens: 7}\nenv: longcontext\n", encoding="utf-8"
    )
    (folder / "y.yaml").write_text("base: x\nagent: {modules: {memory: full_context_answer}}\n", encoding="utf-8")
    options = load_config("y.yaml", ["agent.modules.memory=recurrent_memory"]).config.agent.modules["memory"].options
    assert options == MODULES.options("recurrent_memory")()


def test_naming_the_module_that_is_there_keeps_its_options(folder):
    (folder / "x.yaml").write_text(
        "model: tiny\nagent: {name: memory_agent, modules: {memory: {chunk_tokens: 7}}}\nenv: longcontext\n",
        encoding="utf-8",
    )
    (folder / "y.yaml").write_text(
        "base: x\nagent: {modules: {memory: {name: recurrent_memory, max_chunks: 2}}}\n", encoding="utf-8"
    )
    for words in ([], ["agent.modules.memory=recurrent_memory"], ["agent.modules.memory.name=recurrent_memory"]):
        options = load_config("y.yaml", words).config.agent.modules["memory"].options
        assert (options.chunk_tokens, options.max_chunks) == (7, 2)


def test_the_name_of_a_lower_layer_stays_when_options_are_added(folder):
    written(folder, "{name: memory_r1, modules: {retriever: linear_reranker}}")
    (folder / "y.yaml").write_text("base: x\nagent: {modules: {retriever: {keep: 3}}}\n", encoding="utf-8")
    module = load_config("y.yaml").config.agent.modules["retriever"]
    assert (module.name, module.options.keep) == ("linear_reranker", 3)


def test_a_short_form_below_a_mapping_keeps_what_it_names(folder):
    (folder / "x.yaml").write_text(
        "model: org/name\nengine: vllm\nagent: memory_agent\nenv: longcontext\n", encoding="utf-8"
    )
    (folder / "y.yaml").write_text("base: x\nmodel: {dtype: float32}\nengine: {sleep: false}\n", encoding="utf-8")
    config = load_config("y.yaml").config
    assert (config.model.path, config.model.dtype) == ("org/name", "float32")
    assert (config.engine.kind, config.engine.sleep) == ("vllm", False)


def test_an_override_of_a_name_or_kind_drops_what_stood_there(folder):
    text = (
        "train: {name: grpo, group_size: 3}\nengine: {kind: hf, max_batch: 3}\ndata: {train: {name: facts, rows: 3}}\n"
    )
    config = written(folder, "memory_agent", text)
    found = load_config(config, ["train.name=online", "engine.kind=vllm", "data.train.name=locomo", "env.name=rerank"])
    assert found.config.train.name == "online" and found.config.engine.kind == "vllm"
    assert found.config.data.train.name == "locomo" and found.config.env.name == "rerank"


def test_a_written_run_swaps_its_module_too(folder):
    resolved = load_config(written(folder, "{name: memory_agent, chunk_tokens: 7}"))
    (folder / "again.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    again = load_config("again.yaml", ["agent.modules.memory=full_context_answer"])
    assert again.config.agent.modules["memory"].options == MODULES.options("full_context_answer")()


@pytest.mark.parametrize("like", [False, True])
def test_a_model_that_carries_its_agent_swaps_its_module_too(folder, like):
    resolved = load_config(written(folder, "{name: memory_agent, chunk_tokens: 7, answer_tokens: 9}"))
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    write_agent_file(model, resolved.values, folder)
    assert load_config(model).config.agent.modules["memory"].options.chunk_tokens == 7
    for word in ("agent.modules.memory=full_context_answer", "agent.modules.memory.name=full_context_answer"):
        found = load_config(model, [word], like=resolved if like else None).config.agent.modules["memory"]
        assert (found.name, found.options) == ("full_context_answer", MODULES.options("full_context_answer")())
    kept = load_config(model, ["agent.modules.memory=recurrent_memory", "agent.max_chunks=3"]).config.agent
    options = kept.modules["memory"].options
    assert (options.chunk_tokens, options.answer_tokens, options.max_chunks) == (7, 9, 3)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_module_that_does_not_fit_is_an_error_with_those_that_do(folder, name):
    agent = AGENTS.get("memory_r1")
    misfits = [slot for slot in agent.slots if not fits(MODULES.get(name), agent, slot)]
    assert len(misfits) == (4 if MODULES.get(name).roles == ("reader",) else 3)
    for slot in misfits:
        with pytest.raises(ConfigError, match=rf"agent\.modules\.{slot}.*: module '{name}' .* but this slot needs"):
            load_config(written(folder, f"{{name: memory_r1, modules: {{{slot}: {name}}}}}"))


def test_the_error_lists_the_modules_that_fit(folder):
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, "{name: memory_r1, modules: {updater: naive_retriever}}"))
    told = str(caught.value)
    assert "has the role 'retriever', but this slot needs 'updater'. Modules that fit: " in told
    fitting = told.rpartition("Modules that fit: ")[2].split(", ")
    assert {"naive_updater", "topic_updater"} <= {*fitting} and not {"naive_retriever", "answer"} & {*fitting}


def test_a_plugin_declares_what_its_slots_need_and_its_modules_are(folder):
    class Plain(Module):
        """Plain."""

        def dialogue(self, episode):
            yield from ()

    class Judge(Reader):
        """Judge."""

        roles = ("critic", "reader")

        def dialogue(self, episode):
            yield from ()
            return self.answer(None)

    class Court(Agent):
        """Court."""

        slots: ClassVar = {"judge": "recurrent_memory", "clerk": "recurrent_memory"}
        needs: ClassVar = {"judge": "critic"}

        def dialogue(self, episode):
            yield from ()

    assert fits(Judge, Court, "judge") and fits(Judge, Court, "clerk")
    assert not fits(Plain, Court, "judge") and not fits(Plain, Court, "clerk")
    assert not fits(MODULES.get("recurrent_memory"), Court, "judge")


@pytest.mark.parametrize("key", ["name", "base"])
def test_modules_of_baselines_are_checked_with_the_config(folder, key):
    agent = "{KEY: memory_rmm, modules: {retriever: MODULE}}".replace("KEY", key)
    config = written(folder, "memory_agent", f"eval: {{baselines: [{agent.replace('MODULE', 'naive_updater')}]}}\n")
    with pytest.raises(ConfigError, match=r"x\.yaml:4: eval\.baselines\.0: .*'naive_updater' has the role 'updater'"):
        load_config(config)
    load_config(
        written(folder, "memory_agent", f"eval: {{baselines: [{agent.replace('MODULE', 'naive_retriever')}]}}\n")
    )

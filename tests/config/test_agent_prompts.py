"""One line of a config words the prompts of a whole agent; names of prompts keep to the order of layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.config.describe import json_schema
from memfactory.config.loading import with_agent
from memfactory.errors import ConfigError
from memfactory.registry import MODULES

PLUGIN = '''
from memfactory.components import ModuleOptions
from memfactory.dialogue import Ask
from memfactory.registry import MODULES
from memfactory.roles import Updater
from memfactory.types import Message


class Options(ModuleOptions):
    """Options of `blunt_updater`."""

    prompt: str = "What now?"
    """The whole prompt."""


@MODULES.register("blunt_updater")
class BluntUpdater(Updater[Options]):
    """Asks a question and adds everything."""

    steps = ("update",)

    def dialogue(self, episode, bank, candidates):
        yield Ask("update", (Message("user", self.options.prompt),), 4)
        bank.add(candidates)
'''
NAMED = [name for name in MODULES.names() if MODULES.get(name).__module__.startswith("memfactory.modules")]
ASKING = [name for name in NAMED if MODULES.get(name).steps]


def loaded(folder: Path, agent: str, *overrides: str, rest: str = "") -> Any:
    path = folder / "run.yaml"
    path.write_text(f"model: tiny\nagent: {agent}\nenv: longcontext\n{rest}", encoding="utf-8")
    return load_config(path, list(overrides))


def options_of(resolved: Any) -> dict[str, Any]:
    return {slot: module.options for slot, module in resolved.config.agent.modules.items()}


@pytest.mark.parametrize("name", ASKING)
def test_every_module_that_asks_a_model_has_short_prompts(name: str) -> None:
    model = MODULES.options(name)
    short, default = (model.model_validate({"prompts": preset}) for preset in ("short", "default"))
    assert default == model()
    assert {*short.worded()} == {*default.worded()}
    assert len(json.dumps(short.worded())) < len(json.dumps(default.worded()))


@pytest.mark.parametrize("agent", ["memory_agent", "memory_r1", "memory_rmm", "full_context", "naive_rag", "no_memory"])
@pytest.mark.parametrize("place", ["file", "command line"])
def test_one_line_words_the_prompts_of_a_whole_agent(tmp_path: Path, agent: str, place: str) -> None:
    plain = loaded(tmp_path, agent)
    if place == "file":
        resolved = loaded(tmp_path, f"{{name: {agent}, prompts: short}}")
    else:
        resolved = loaded(tmp_path, agent, "agent.prompts=short")
    assert resolved.warnings == ()
    for slot, options in options_of(resolved).items():
        asks = MODULES.get(resolved.config.agent.modules[slot].name).steps
        short = type(options).model_validate({"prompts": "short"} if asks else {})
        assert options.worded() == short.worded()
        # Nothing but the wording changes: the part's other options stay.
        before = options_of(plain)[slot]
        others = {*type(options).model_fields} - type(options).wording_keys()
        assert options.model_dump(include=others) == before.model_dump(include=others)


def test_a_written_run_can_be_reworded(tmp_path: Path) -> None:
    for agent in ("memory_agent", "memory_r1", "memory_rmm", "memory_agent_chunk_first"):
        first = loaded(tmp_path, agent)
        (tmp_path / "again.yaml").write_text(first.to_yaml(), encoding="utf-8")
        short = load_config(tmp_path / "again.yaml", ["agent.prompts=short"])
        assert options_of(short) == options_of(loaded(tmp_path, f"{{name: {agent}, prompts: short}}"))
        (tmp_path / "third.yaml").write_text(short.to_yaml(), encoding="utf-8")
        back = load_config(tmp_path / "third.yaml", ["agent.prompts=default"])
        # Defaults are the module's own: the order of a part is not among them.
        name = agent.removesuffix("_chunk_first")
        assert options_of(back) == options_of(loaded(tmp_path, name))


def test_texts_of_the_same_layer_win_and_those_below_lose(tmp_path: Path) -> None:
    own = '"{memory} {question}, please"'
    agent = f"{{name: memory_r1, prompts: short, modules: {{answerer: {{prompt: {own}}}}}}}"
    assert options_of(loaded(tmp_path, agent))["answerer"].prompt == "{memory} {question}, please"
    agent = f"{{name: memory_r1, modules: {{answerer: {{prompt: {own}, answer_form: marker}}}}}}"
    answerer = options_of(loaded(tmp_path, agent, "agent.prompts=short"))["answerer"]
    assert answerer == MODULES.options("answer")(prompts="short", interface="inference")
    assert answerer.requested_form == "plain"


def test_one_text_of_ones_own_stands_beside_a_preset(tmp_path: Path) -> None:
    answer = '{answer: "{memory} {question} now"}'
    agent = f"{{name: memory_agent, prompts: short, modules: {{memory: {{prompts: {answer}}}}}}}"
    memory = options_of(loaded(tmp_path, agent))["memory"]
    short = MODULES.options("recurrent_memory")(prompts="short")
    assert (memory.prompts.update, memory.empty_memory) == (short.prompts.update, "nothing yet")
    assert memory.prompts.answer == "{memory} {question} now"


def test_a_modules_own_preset_wins_unless_it_stands_below(tmp_path: Path) -> None:
    agent = "{name: memory_r1, prompts: short, modules: {answerer: {prompts: default}}}"
    options = options_of(loaded(tmp_path, agent))
    assert options["answerer"].prompt == MODULES.options("answer")().prompt
    assert options["extractor"].prompt == MODULES.options("naive_extractor")(prompts="short").prompt
    agent = "{name: memory_r1, modules: {answerer: {prompts: default}}}"
    answerer = options_of(loaded(tmp_path, agent, "agent.prompts=short"))["answerer"]
    assert answerer.prompt == MODULES.options("answer")(prompts="short").prompt


def test_the_agents_preset_counts_for_a_successor_and_its_texts_do_not(tmp_path: Path) -> None:
    swap = "agent.modules.memory=full_context_answer"
    reader = options_of(loaded(tmp_path, "{name: memory_agent, prompts: short}", swap))["memory"]
    assert reader == MODULES.options("full_context_answer")(prompts="short")
    texts = '{update: "{section} {question} {memory}", answer: "{question} {memory}"}'
    agent = f"{{name: memory_agent, order: chunk_first, prompts: {texts}}}"
    assert options_of(loaded(tmp_path, agent, swap))["memory"] == MODULES.options("full_context_answer")()
    # A preset that only the module before it had is no mistake; a warning says that it is not used.
    resolved = loaded(tmp_path, "{name: memory_agent, prompts: memagent}", swap)
    assert options_of(resolved)["memory"] == MODULES.options("full_context_answer")()
    (warning,) = resolved.warnings
    assert "'full_context_answer' in the slot 'memory' has no preset 'memagent', so it keeps its own" in warning


def test_a_users_module_without_the_preset_keeps_its_prompts(tmp_path: Path) -> None:
    (tmp_path / "blunt.py").write_text(PLUGIN, encoding="utf-8")
    agent = "{name: memory_r1, prompts: short, modules: {updater: blunt_updater}}"
    resolved = loaded(tmp_path, agent, rest="plugins: [blunt.py]\n")
    options = options_of(resolved)
    assert options["updater"].prompt == "What now?"
    assert options["extractor"].prompt == MODULES.options("naive_extractor")(prompts="short").prompt
    (warning,) = resolved.warnings
    assert "'blunt_updater' in the slot 'updater' has no preset 'short'" in warning and "presets: none" in warning


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (
            "{name: memory_r1, prompts: shrt}",
            "run.yaml:2: agent.prompts: no preset of prompts is called 'shrt'; did you "
            "mean 'short'? There are: default, short.",
        ),
        ("{name: memory_r1, prompts: memagent}", "There are: default, short."),
        ("{name: memory_r1, prompts: {update: x}}", "agent.prompts: expected the name of a preset, for all modules"),
        ("{name: memory_r1, modules: {retriever: {prompts: short}}}", "this module has no presets"),
        ("{name: memory_r1, promts: short}", "unknown key; did you mean 'prompts'?"),
    ],
)
def test_a_name_that_no_module_has_is_an_error(tmp_path: Path, agent: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, agent)
    assert message in str(error.value)


def test_the_place_of_a_presets_name_is_the_origin_of_its_texts(tmp_path: Path) -> None:
    resolved = loaded(tmp_path, "memory_r1", "agent.prompts=short")
    assert resolved.origins["agent.modules.answerer.prompt"] == "command line: agent.prompts=short"
    resolved = loaded(tmp_path, "{name: memory_agent, prompts: short}")
    assert resolved.origins["agent.modules.memory.order"].endswith("run.yaml:2")
    assert "agent.modules.memory.chunk_tokens" in resolved.origins


def test_a_baseline_names_its_own_prompts(tmp_path: Path) -> None:
    baselines = "eval: {baselines: [full_context, {name: naive_rag, prompts: short}]}\n"
    resolved = loaded(tmp_path, "{name: memory_agent, prompts: short}", rest=baselines)
    plain, short = (with_agent(resolved, agent) for agent in resolved.config.eval.baselines)
    assert options_of(plain)["answerer"].prompt == MODULES.options("full_context_answer")().prompt
    assert options_of(short)["answerer"].prompt == MODULES.options("answer")(prompts="short").prompt


def test_the_short_prompt_of_the_updater_follows_its_format(tmp_path: Path) -> None:
    agent = "{name: memory_r1, prompts: short, modules: {updater: {format: mem0}}}"
    assert '"event": "NONE"' in options_of(loaded(tmp_path, agent))["updater"].wording
    agent = "{name: memory_r1, prompts: short}"
    assert '"operations"' in options_of(loaded(tmp_path, agent))["updater"].wording


def test_the_schema_knows_the_names() -> None:
    agents = {
        schema["properties"]["name"]["const"]: schema["properties"]
        for schema in json_schema()["properties"]["agent"]["anyOf"]
        if "name" in schema.get("properties", {})
    }
    assert agents["memory_r1"]["prompts"]["enum"] == ["default", "memagent", "short"]
    name, texts = agents["memory_agent"]["prompts"]["anyOf"]
    assert name == {"enum": ["default", "memagent", "short"]} and texts == {"$ref": "#/$defs/Prompts"}
    slots = agents["memory_r1"]["modules"]["properties"]["answerer"]["anyOf"]
    by_name = {slot["properties"]["name"]["const"]: slot["properties"] for slot in slots if "properties" in slot}
    assert by_name["answer"]["prompts"]["enum"] == ["default", "short"]
    assert "prompts" not in by_name["naive_retriever"]


def test_the_list_shows_the_presets_of_each_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "prompts"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    shown = {name: names.split(", ") for name, names in lines}
    # Another file's tests may have registered a module of their own.
    assert {name for name in shown if MODULES.is_builtin(name)} == {*ASKING}
    assert shown["recurrent_memory"] == ["default", "memagent", "short"]
    assert run(["list", "prompts", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "Answer in a few words:" in out and "Bring the memory up to date." in out
    assert run(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    modules = {module["name"]: module for module in listed["modules"]}
    assert modules["answer"]["prompts"] == ["default", "short"] and "prompts" not in modules["naive_retriever"]
    texts = {module["name"]: module["prompts"] for module in listed["prompts"]}
    assert texts["recurrent_memory"]["short"]["empty_memory"] == "nothing yet"
    assert {"agents", "engines", "configs"} <= {*listed}
    assert run(["list", "rewards", "--json", "--verbose"]) == 0
    (kind,) = json.loads(capsys.readouterr().out).values()
    assert all(option["key"] for reward in kind for option in reward["options"])


def test_no_line_of_the_list_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["list"], ["list", "--verbose"], ["list", "configs"]):
        assert run(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines and [line for line in lines if line != line.rstrip()] == []


def test_a_plain_list_imports_no_component() -> None:
    code = (
        "import sys\n"
        "from memfactory.cli.app import run\n"
        "assert run(['list', 'rewards']) == 0\n"
        "print([name for name in sys.modules if name.startswith('memfactory.envs.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr

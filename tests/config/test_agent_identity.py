"""A model is the same agent wherever it lies: memfactory.yaml, and what a model takes from a run beside it."""

import json
import shutil
import sys

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config, load_side_by_side
from memfactory.config.agent_file import read_agent_file, write_agent_file
from memfactory.errors import ConfigError
from memfactory.registry import MODULES, REWARDS

CONFIG = """
model: {path: tiny, dtype: float32, cpu_threads: 1}
agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 24, answer_tokens: 12}
env: {name: longcontext, rewards: {boxed_em: 1.0}}
data:
  train: {name: facts, rows: 16}
  eval: {held: {name: facts, rows: 4, split: heldout}}
train: {name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, eval_at_start: false, eval_at_end: false}
eval: {samples: 2, temperature: 0.7, metrics: [boxed_em]}
trackers: [console]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of one step, and with copies of its final/ and of its checkpoint."""
    place = tmp_path_factory.mktemp("trained")
    (place / "run.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(["train", "run.yaml", "--output", "run"]) == 0
    shutil.copytree(place / "run/final", place / "copied")
    shutil.copytree(place / "run/checkpoints/step-1", place / "step")
    return place


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def results(place, *words, output):
    """results.json and results.md of an evaluation."""
    assert run(["eval", *words, "--output", str(output)]) == 0
    return json.loads((output / "results.json").read_text()), (output / "results.md").read_text()


def scores(found):
    return {name: model["datasets"]["held"]["metrics"] for name, model in found["models"].items()}


def test_identical_weights_give_identical_scores_wherever_they_lie(place, tmp_path):
    found, table = results(place, "run", "copied", "step", output=tmp_path)
    run_scores, *others = scores(found).values()
    assert others == [run_scores, run_scores] and [*run_scores] == ["boxed_em"]
    for held in found["differences"]["models"].values():
        assert held["held"]["boxed_em"]["mean"] == 0 == held["held"]["boxed_em"]["standard_error"]
    assert "Not only the models differ" not in table and found["differing_settings"] == {}


def test_a_checkpoint_that_lies_in_another_run_stays_what_it_was(place, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(place / "run", other, ignore=shutil.ignore_patterns("checkpoints", "final"))
    (other / "config.yaml").write_text((place / "run/config.yaml").read_text().replace("tokens: 64", "tokens: 32"))
    shutil.copytree(place / "copied", other / "best")
    assert load_config(other).config.agent.modules["memory"].options.chunk_tokens == 32
    assert load_config(other / "best").config.agent.modules["memory"].options.chunk_tokens == 64


def test_a_bare_model_is_evaluated_as_the_run_beside_it(place, tmp_path):
    found, table = results(place, "tiny", "run", "--limit", "1", output=tmp_path)
    tiny, trained_one = (found["models"][name]["config"] for name in ("tiny", "run"))
    assert tiny["agent"] == trained_one["agent"] and tiny["eval"] == trained_one["eval"]
    assert tiny["model"]["path"] == "tiny" and tiny["model"]["dtype"] == "float32"
    assert [*found["models"]["tiny"]["datasets"]] == ["held"]
    assert "Not only the models differ" not in table


def test_settings_that_differ_stand_above_the_numbers(place, tmp_path):
    (tmp_path / "other.yaml").write_text(CONFIG.replace("chunk_tokens: 64", "chunk_tokens: 32"))
    found, table = results(place, "run", str(tmp_path / "other.yaml"), "--limit", "1", output=tmp_path / "out")
    assert "Not only the models differ: agent.modules.memory.chunk_tokens: 64 (run), 32 (other)" in table
    assert found["differing_settings"] == {"agent.modules.memory.chunk_tokens": {"run": 64, "other": 32}}


def test_a_copied_checkpoint_is_the_agent_that_it_was_trained_as(place):
    for name in ("copied", "step"):
        found = load_config(name, command="infer")
        assert found.config.agent == load_config("run").config.agent
        assert (found.config.model.path, found.config.model.dtype) == (name, "float32")
        assert found.config.eval.temperature == 0.7 and found.config.train is None


def test_a_training_config_takes_the_agent_of_the_model_it_names(place, tmp_path):
    config = tmp_path / "further.yaml"
    rest = "env: longcontext\ntrain: grpo\ndata: {train: facts}\n"
    config.write_text(f"model: {{path: {place / 'copied'}}}\n{rest}")
    found = load_config(config, ["agent.memory_tokens=16"])
    assert found.config.agent.modules["memory"].options.chunk_tokens == 64
    assert found.config.agent.modules["memory"].options.memory_tokens == 16
    config.write_text(f"model: {{path: {place / 'copied'}}}\nagent: memory_agent\n{rest}")
    (told,) = load_config(config).warnings
    assert "trained as another agent" in told and "agent.modules.memory.chunk_tokens=2500 (there 64)" in told


def test_like_decides_over_what_a_checkpoint_says(place, tmp_path):
    (tmp_path / "other.yaml").write_text(CONFIG.replace("chunk_tokens: 64", "chunk_tokens: 32"))
    (found,) = load_side_by_side(["copied"], command="eval", like=str(tmp_path / "other.yaml"))
    assert found.config.agent.modules["memory"].options.chunk_tokens == 32
    beside, copied = load_side_by_side([str(tmp_path / "other.yaml"), "copied"], command="eval")
    assert beside.config.agent.modules["memory"].options.chunk_tokens == 32
    assert copied.config.agent.modules["memory"].options.chunk_tokens == 64
    assert copied.config.data == beside.config.data


def test_the_file_holds_no_code_paths_or_engines(place):
    text = (place / "copied/memfactory.yaml").read_text()
    assert text.startswith("# ") and str(place) not in text
    found = read_agent_file(place / "copied")
    assert {*found.sections} == {"agent", "env", "memory", "eval"} and found.plugins == ()


def rewritten(place, tmp_path, **sections):
    """A copy of the checkpoint whose memfactory.yaml says what a stranger wrote."""
    shutil.copytree(place / "copied", tmp_path / "stranger")
    path = tmp_path / "stranger/memfactory.yaml"
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in sections.items())
    path.write_text(text)
    return str(tmp_path / "stranger")


def test_plugins_that_a_checkpoint_names_are_not_imported(place, tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    stranger = rewritten(place, tmp_path, agent={"name": "my_agent"}, plugins=[str(evil)])
    with pytest.raises(ConfigError, match=r"if you have these plugins and trust them, add plugins=") as caught:
        load_config(stranger, command="infer")
    assert "no agent is called 'my_agent'" in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_infer_needs_no_plugin_that_only_rewards_came_from(place, tmp_path):
    env = {"name": "longcontext", "rewards": {"politeness": 1.0}}
    evaluation = {"metrics": ["politeness"], "baselines": ["my_agent"]}
    agent = {"name": "memory_agent", "modules": {"memory": {"name": "recurrent_memory", "chunk_tokens": 9}}}
    stranger = rewritten(place, tmp_path, agent=agent, env=env, eval=evaluation, plugins=["politeness.py"])
    assert load_config(stranger, command="infer").config.agent.modules["memory"].options.chunk_tokens == 9
    with pytest.raises(ConfigError, match=r"trained with plugins \(politeness\.py\)"):
        load_config(stranger, command="eval")


def test_a_strangers_file_reads_no_environment_and_picks_no_endpoint(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_NAME", "Ada")
    prompts = {"answer": "${oc.env:MY_NAME} {question} {memory}"}
    agent = {"name": "memory_agent", "modules": {"memory": {"name": "recurrent_memory", "prompts": prompts}}}
    embedder = {"kind": "openai", "model": "m", "base_url": "http://stranger.invalid/v1"}
    stranger = rewritten(place, tmp_path, agent=agent, memory={"embedder": embedder, "cache": "/somewhere"})
    with pytest.raises(ConfigError, match=r"memory.embedder: the agent embeds texts with an endpoint \(m at http"):
        load_config(stranger, command="infer")
    found = load_config(stranger, ["memory.embedder={kind: lexical}"], command="infer")
    assert found.config.agent.modules["memory"].options.prompts.answer == prompts["answer"]
    assert found.config.memory.cache is None


def test_a_published_model_is_the_agent_that_its_file_names(place, tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "models--org--reader"
    shutil.copytree(place / "copied", repository / "snapshots/1234")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("1234")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = load_config("org/reader", command="eval")
    assert found.config.agent == load_config("run").config.agent and found.config.model.path == "org/reader"
    rest = "env: longcontext\ntrain: grpo\ndata: {train: facts}\n"
    (tmp_path / "further.yaml").write_text("model: org/reader\n" + rest)
    assert load_config(tmp_path / "further.yaml").config.agent == found.config.agent
    assert load_config("org/other", command="eval").config.agent.modules["memory"].options.chunk_tokens == 2500


def test_a_file_of_another_shape_is_told(place, tmp_path):
    stranger = rewritten(place, tmp_path, agent="memory_agent")
    with pytest.raises(ConfigError, match=r"memfactory\.yaml: expected a mapping under each of"):
        load_config(stranger)


def test_learnt_modules_move_with_their_agent_and_ask_whom_you_say(tmp_path):
    engine = "engine={kind: openai, model: m, base_url: 'http://127.0.0.1:1/v1', api_key_env: null}"
    (tmp_path / "maps.safetensors").write_bytes(b"maps")
    values = load_config("rmm_linear", [engine, "agent.read=turns"]).values
    values["agent"]["modules"]["retriever"]["weights"] = "maps.safetensors"
    values["plugins"] = ["/home/ada/mine.py", "package.parts"]
    folder = tmp_path / "moved"
    folder.mkdir()
    write_agent_file(folder, values, tmp_path)
    assert (folder / "modules/retriever.safetensors").read_bytes() == b"maps"
    assert read_agent_file(folder).plugins == ("mine.py", "package.parts")
    with pytest.raises(ConfigError, match=r"engine: the agent of .*memfactory\.yaml ran on an endpoint"):
        load_config(folder)
    found = load_config(folder, [engine]).config.agent
    assert found.options.read == "turns"
    assert found.modules["retriever"].options.weights == str(folder / "modules/retriever.safetensors")


def test_an_adapter_carries_its_agent_and_the_name_of_its_base(place, tmp_path):
    overrides = ["train.lora={rank: 2}", "agent.chunk_tokens=48", f"output={tmp_path / 'lora'}"]
    assert run(["train", "run.yaml", *overrides]) == 0
    moved = shutil.move(tmp_path / "lora/final", tmp_path / "adapter")
    found = load_config(moved, command="eval")
    assert (found.config.model.path, found.config.model.adapter) == ("tiny", str(moved))
    assert found.config.agent.modules["memory"].options.chunk_tokens == 48


def test_a_run_that_has_not_ended_says_which_checkpoint_is_taken(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("final"))
    found = load_config(tmp_path / "run", command="eval")
    assert any("has no final/: its checkpoint step-1 is taken" in told for told in found.warnings)
    assert not load_config("run", command="eval").warnings


def test_scores_by_a_rule_that_has_changed_are_given_anew(place, tmp_path):
    first, _ = results(place, "run", output=tmp_path)
    second, _ = results(place, "run", "env.rewards={boxed_em: {last_characters: 1}}", output=tmp_path)
    third, _ = results(place, "run", output=tmp_path)
    assert scores(first)["run"]["boxed_em"]["mean"] > 0 == scores(second)["run"]["boxed_em"]["mean"]
    assert scores(third) == scores(first)


REWARD = """
from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import REWARDS

@REWARDS.register("brevity")
class Brevity(RewardFunction):
    def score(self, episodes):
        return [VALUE for _ in episodes]
"""
MODULE = """
from memfactory.modules.recurrent_memory import RecurrentMemoryModule
from memfactory.registry import MODULES

@MODULES.register("my_memory")
class MyMemory(RecurrentMemoryModule):
    number = VALUE
"""


def test_scores_by_own_code_that_has_changed_are_given_anew(place, tmp_path, own_components):
    words = ["plugins=[mine.py]", "env.rewards={brevity: 1.0}", "eval.metrics=[brevity]"]
    for value in ("0.25", "0.75"):
        REWARDS._registered.pop("brevity", None)  # Each command is a process of its own.
        (place / "mine.py").write_text(REWARD.replace("VALUE", value))
        found, _ = results(place, "run", *words, output=tmp_path)
        assert scores(found)["run"]["brevity"]["mean"] == float(value)


def test_samples_of_own_code_that_has_changed_are_refused(place, tmp_path, monkeypatch, capsys, own_components):
    words = ["eval", "run", "plugins=[mine.py]", "agent.modules.memory.name=my_memory", "--output", str(tmp_path)]
    for value, code in (("1", 0), ("1", 0), ("2", 2)):
        MODULES._registered.pop("my_memory", None)
        for name in [name for name in sys.modules if name.startswith("memfactory_plugin_")]:
            monkeypatch.delitem(sys.modules, name)
        (place / "mine.py").write_text(MODULE.replace("VALUE", value))
        assert run(words) == code
    assert "holds samples of another evaluation (agent was" in capsys.readouterr().err

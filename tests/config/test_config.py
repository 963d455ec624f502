"""Configurations: composition, overrides, what is resolved, and that it loads again."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memfactory.config import load_config, load_values
from memfactory.config.interpolation import escape, resolve
from memfactory.config.problems import Problems
from memfactory.config.tree import dump, read_text
from memfactory.errors import ConfigError
from memfactory.files.folders import write_marker

BASE = """\
model: tiny
agent: memory_agent
env: longcontext
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def module_of(resolved):
    return resolved.config.agent.modules["memory"].options


def test_options_of_a_part_reach_the_agents_only_module(folder):
    write(folder / "configs/agents/short.yaml", "name: memory_agent\nchunk_tokens: 77\nmax_chunks: 3\n")
    config = write(
        folder / "configs/run.yaml", BASE.replace("agent: memory_agent", "agent: {name: short, max_chunks: 4}")
    )
    options = module_of(load_config(config))
    assert (options.chunk_tokens, options.max_chunks) == (77, 4)


def test_a_part_beside_the_config_counts_from_any_working_directory(folder):
    write(folder / "there/configs/envs/strict.yaml", "name: longcontext\nrewards: {em: 2.0}\n")
    config = write(folder / "there/configs/run.yaml", BASE.replace("longcontext", "strict"))
    assert load_config(config).config.env.options.rewards == {"em": 2.0}


def test_parts_and_configs_can_be_based_on_others(folder):
    write(folder / "configs/agents/short.yaml", "name: memory_agent\nchunk_tokens: 77\nmemory_tokens: 5\n")
    write(folder / "configs/agents/shorter.yaml", "base: short\nchunk_tokens: 7\n")
    write(folder / "configs/first.yaml", BASE.replace("memory_agent", "shorter") + "seed: 3\neval: {samples: 9}\n")
    config = write(folder / "configs/second.yaml", "base: first\nseed: 4\nagent: {memory_tokens: 6}\n")
    resolved = load_config(config)
    options = module_of(resolved)
    assert (options.chunk_tokens, options.memory_tokens) == (7, 6)
    assert (resolved.config.seed, resolved.config.eval.samples) == (4, 9)


def test_rewards_replace_those_of_the_part_and_other_mappings_merge(folder):
    write(folder / "configs/envs/all.yaml", "name: longcontext\nrewards: {em: 1.0, format: 0.1}\n")
    write(folder / "configs/train/fast.yaml", "name: grpo\nloss: {kl_coef: 0.5, clip_low: 0.1}\n")
    text = (
        BASE.replace("longcontext", "{name: all, rewards: {f1: 1.0}}") + "train: {name: fast, loss: {clip_low: 0.3}}\n"
    )
    resolved = load_config(write(folder / "configs/run.yaml", text))
    assert resolved.config.env.options.rewards == {"f1": 1.0}
    loss = resolved.config.train.options.loss
    assert (loss.kl_coef, loss.clip_low) == (0.5, 0.3)


def test_overrides_are_applied_one_by_one_and_whole_parts_first(folder):
    write(folder / "configs/agents/short.yaml", "name: memory_agent\nchunk_tokens: 77\nmemory_tokens: 9\n")
    config = write(folder / "configs/run.yaml", BASE + "train: {name: grpo, steps: 5}\nengine: hf\n")
    overrides = ["agent.chunk_tokens=8", "agent=short", "--train.steps=6", "engine.max_batch=2", "model.path=a=b"]
    overrides += [
        "env.rewards={em: 1.0}",
        "env.rewards.em.weight=0.5",
        "train.lora.rank=4",
        "trackers=[console, jsonl]",
    ]
    resolved = load_config(config, [*overrides, "trackers[1].kind=swanlab", "trackers.1.mode=local"])
    options = module_of(resolved)
    assert (options.chunk_tokens, options.memory_tokens) == (8, 9)
    assert resolved.config.train.options.steps == 6
    assert resolved.config.train.options.lora.rank == 4
    assert resolved.config.engine.max_batch == 2
    assert resolved.config.model.path == "a=b"
    assert resolved.config.env.options.rewards == {"em": {"weight": 0.5}}
    assert [tracker.kind for tracker in resolved.config.trackers] == ["console", "swanlab"]
    assert resolved.config.trackers[1].mode == "local"


def test_a_module_fills_a_slot_by_name_with_options_beside_it(folder):
    agent = "{name: memory_agent, chunk_tokens: 3, modules: {memory: {name: recurrent_memory, max_chunks: 2}}}"
    resolved = load_config(write(folder / "run.yaml", BASE.replace("memory_agent", agent, 1)))
    options = module_of(resolved)
    assert (options.chunk_tokens, options.max_chunks) == (3, 2)


def test_numbers_and_words_follow_yaml_1_2(folder):
    text = BASE + "train: {name: grpo, optimizer: {learning_rate: 2e-5}, eval_at_start: no, steps: 010}\n"
    options = load_config(write(folder / "run.yaml", text)).config.train.options
    assert options.optimizer.learning_rate == 2e-5
    assert options.eval_at_start is False
    assert options.steps == 10


def test_environment_variables_and_references_are_filled_in(folder, monkeypatch):
    monkeypatch.setenv("MY_SEED", "7")
    text = (
        BASE.replace("tiny", "{path: '${oc.env:MY_MODEL,tiny}'}") + "seed: ${oc.env:MY_SEED}\neval: {seed: '${seed}'}\n"
    )
    resolved = load_config(write(folder / "run.yaml", text))
    assert (resolved.config.model.path, resolved.config.seed, resolved.config.eval.seed) == ("tiny", 7, 7)


def test_an_escaped_dollar_brace_survives_the_round_trip(folder):
    agent = r"agent: {name: memory_agent, empty_memory: 'cost \${x} and \\\${y}'}"
    resolved = load_config(write(folder / "run.yaml", f"model: tiny\nenv: longcontext\n{agent}\n"))
    assert module_of(resolved).empty_memory == "cost ${x} and \\${y}"
    again = load_config(write(folder / "again.yaml", resolved.to_yaml()))
    assert again.config == resolved.config


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("rows.jsonl", "file", {"path": "rows.jsonl"}),
        ("./missing", "file", {"path": "./missing"}),
        ("rows", "file", {"path": "data/rows.json"}),
        ("org/set", "hub", {"id": "org/set"}),
        ("{path: a.json, limit: 3}", "file", {"path": "a.json", "limit": 3}),
        ("{id: org/set, split: test}", "hub", {"id": "org/set", "split": "test"}),
        ("{name: a.json, limit: 3}", "file", {"path": "a.json", "limit": 3}),
    ],
)
def test_a_dataset_is_a_file_a_hub_id_or_a_registered_name(folder, spec, name, options):
    write(folder / "data/rows.json", "[]")
    found = load_config(write(folder / "run.yaml", BASE + f"data: {{train: {spec}}}\n")).config.data.train
    assert found.name == name
    assert {key: getattr(found.options, key) for key in options} == options


def test_evaluation_sets_take_their_names_from_their_files(folder):
    listed = load_config(write(folder / "run.yaml", BASE + "data: {eval: [a/eval_50.json, {id: org/other}]}\n"))
    assert list(listed.config.data.eval) == ["eval_50", "other"]
    named = load_config(write(folder / "run.yaml", BASE + "data: {eval: {short: a/eval_50.json}}\n"))
    assert named.config.data.eval["short"] == listed.config.data.eval["eval_50"]


def test_a_file_beside_the_config_is_found_from_elsewhere(folder):
    write(folder / "project/rows.jsonl", "{}")
    config = write(folder / "project/run.yaml", BASE + "data: {train: rows.jsonl}\n")
    resolved = load_config(config)
    assert resolved.config.data.train.options.path == str(folder / "project/rows.jsonl")
    moved = write(folder / "runs/x/config.yaml", resolved.to_yaml())
    assert load_config(moved).config == resolved.config


def test_what_is_resolved_does_not_change_with_the_parts(folder):
    part = write(folder / "configs/agents/memory_agent.yaml", "name: memory_agent\nchunk_tokens: 77\n")
    resolved = load_config(write(folder / "configs/run.yaml", BASE))
    written = write(folder / "configs/written.yaml", resolved.to_yaml())
    part.write_text("name: memory_agent\nchunk_tokens: 88\nnonsense: 1\n")
    assert load_config(written).config == resolved.config
    assert load_values(written) == resolved.values
    assert module_of(load_config(written, ["agent.chunk_tokens=5"])).chunk_tokens == 5


def test_every_value_says_where_it_was_written(folder):
    write(folder / "configs/agents/short.yaml", "name: memory_agent\nchunk_tokens: 77\n")
    config = write(folder / "configs/run.yaml", BASE.replace("memory_agent", "short") + "train:\n  name: grpo\n")
    origins = load_config(config, ["train.steps=3"]).origins
    assert origins["model.path"] == "configs/run.yaml:1"
    assert origins["agent.modules.memory.chunk_tokens"] == "configs/agents/short.yaml:2"
    assert origins["train.steps"] == "command line: train.steps=3"
    assert "train.temperature" not in origins


def make_run(folder: Path) -> Path:
    run = folder / "runs/one"
    resolved = load_config(write(folder / "one.yaml", BASE + "seed: 5\n"))
    write(run / "config.yaml", resolved.to_yaml())
    write(run / "metrics.jsonl", "")
    for step in (2, 10):
        for name in ("config.json", "state.json", "random.json", "optimizer.pt", "model.safetensors"):
            write(run / f"checkpoints/step-{step}/{name}", "{}")
        write_marker(run / f"checkpoints/step-{step}")
    write(run / "checkpoints/step-12/config.json", "{}")
    return run


def test_a_run_folder_is_its_config_in_training_else_its_newest_model(folder):
    run = make_run(folder)
    assert load_config(run).config.model.path == "tiny"
    found = load_config("runs/one", command="eval")
    assert found.config.model.path == str(Path("runs/one/checkpoints/step-10"))
    assert (found.config.seed, found.name) == (5, "one")
    write(run / "final/config.json", "{}")
    assert load_config("runs/one", command="infer").config.model.path == str(Path("runs/one/final"))


def test_a_checkpoint_takes_the_config_of_its_run(folder):
    make_run(folder)
    found = load_config("runs/one/checkpoints/step-2", ["seed=6"], command="eval")
    assert found.config.model.path == str(Path("runs/one/checkpoints/step-2"))
    assert (found.config.seed, found.name) == (6, "one-step-2")


def test_an_adapter_keeps_the_model_it_was_trained_on(folder):
    run = make_run(folder)
    write(run / "final/adapter_config.json", json.dumps({"base_model_name_or_path": "elsewhere"}))
    found = load_config(run / "final")
    assert (found.config.model.path, found.config.model.adapter) == ("tiny", str(run / "final"))
    bare = folder / "adapter"
    write(bare / "adapter_config.json", json.dumps({"base_model_name_or_path": "org/base"}))
    found = load_config(bare)
    assert (found.config.model.path, found.config.model.adapter) == ("org/base", str(bare))


def test_a_bare_model_gets_the_default_agent_and_environment(folder):
    write(folder / "model/config.json", "{}")
    for source in ("tiny", "model", "org/model"):
        config = load_config(source).config
        assert (config.model.path, config.agent.name, config.env.name) == (source, "memory_agent", "longcontext")


def test_a_config_of_the_package_is_found_by_its_name(folder):
    by_name = load_config("memagent_qwen3_4b")
    assert by_name.config.model.path == "Qwen/Qwen3-4B-Instruct-2507"
    assert load_config("configs/memagent_qwen3_4b.yaml").config == by_name.config


REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads_and_loads_again(config, folder):
    resolved = load_config(config)
    assert load_config(write(folder / "again.yaml", resolved.to_yaml())).config == resolved.config


@pytest.mark.parametrize("part", sorted((REPOSITORY / "configs").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_part_of_the_repository_can_be_named(part, folder):
    section = {"agents": "agent", "envs": "env", "train": "train"}[part.parent.name]
    load_config(write(folder / "run.yaml", BASE), [f"{section}={part.stem}"])


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(min_size=1), json_like, max_size=3))
def test_written_values_read_back_as_they_were(values):
    values = json.loads(json.dumps(values))
    try:
        text = dump(values)
        read = read_text(text, "x.yaml").values
    except ConfigError as error:
        # Keys that YAML cannot tell from other types are refused, and so is text that YAML forbids.
        assert "is not text" in str(error) or "special characters" in str(error)
    else:
        assert read == values


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="\\${}ab:") | st.text())
@example("$${{:")
def test_any_text_survives_being_escaped_and_resolved(text):
    if text != "???":
        assert resolve(escape({"a": text}), Problems({}, "x")) == {"a": text}

"""Whatever is in a config: it loads, or every problem is a message. Never anything else."""

import copy
import json
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memfactory.config import Resolved, load_config
from memfactory.errors import ConfigError

SOUND = {
    "model": {"path": "tiny", "dtype": "float32", "template_options": {"enable_thinking": False}},
    "agent": {
        "name": "memory_agent",
        "chunk_tokens": 100,
        "modules": {"memory": {"name": "recurrent_memory", "max_chunks": 3, "prompts": {"system": "Be brief."}}},
    },
    "env": {"name": "longcontext", "rewards": {"boxed_em": 1.0, "format": {"weight": 0.1}}},
    "train": {
        "name": "grpo",
        "steps": 3,
        "lora": {"rank": 4, "target_modules": ["q_proj"]},
        "optimizer": {"learning_rate": 1e-5, "schedule": "cosine"},
        "loss": {"objective": "ppo", "dual_clip": 3.0},
    },
    "data": {"train": {"path": "rows.jsonl", "limit": 5}, "eval": {"a": "rows.jsonl", "b": {"id": "org/set"}}},
    "engine": {"kind": "hf", "max_batch": 4},
    "engines": {"judge": {"kind": "openai", "model": "big", "api_key_env": ""}},
    "trackers": ["console", {"kind": "swanlab", "mode": "offline"}],
    "eval": {"samples": 2, "metrics": ["em"]},
    "plugins": [],
    "seed": 1,
}
COMMANDS = st.sampled_from([None, "train", "eval", "infer"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["${", "${a}", "${oc.env:HOME}", "???", "1" * 5000, "\0", "a/b", "~/x", "*.json", "tiny", "-1"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
fuzz = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the one file that the sound config needs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"context": "a", "input": "b", "answers": ["c"]}\n')
    return tmp_path


def places(value, path=()):
    """The path of every key and every list position of a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def at(value, path):
    for part in path:
        value = value[part]
    return value


def loads_or_says_why(source, overrides=(), command=None):
    try:
        resolved = load_config(source, overrides, command=command)
    except ConfigError as error:
        assert error.problems
        assert all(isinstance(problem, str) and problem for problem in error.problems)
        return
    assert isinstance(resolved, Resolved)
    written = Path("again.yaml")
    written.write_text(resolved.to_yaml(), encoding="utf-8")
    assert load_config(written).config == resolved.config


def test_the_config_that_is_broken_below_is_sound(folder):
    (folder / "x.yaml").write_text(yaml.safe_dump(SOUND))
    assert load_config("x.yaml", command="train").warnings == ()


@fuzz
@given(data=st.data(), command=COMMANDS)
def test_a_value_of_any_kind_in_any_place(folder, data, command):
    config = copy.deepcopy(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(config), key=str)))
        at(config, path[:-1])[path[-1]] = data.draw(VALUES)
    (folder / "x.yaml").write_text(json.dumps(config), encoding="utf-8")
    loads_or_says_why("x.yaml", command=command)


@fuzz
@given(data=st.data(), command=COMMANDS)
def test_a_key_misspelt_moved_or_left_out(folder, data, command):
    config = copy.deepcopy(SOUND)
    path = data.draw(st.sampled_from(sorted((p for p in places(config) if isinstance(p[-1], str)), key=str)))
    parent = at(config, path[:-1])
    value = parent.pop(path[-1])
    if data.draw(st.booleans()):
        target = data.draw(st.sampled_from([parent, config, config.get("train", config)]))
        letters = st.sampled_from(string.ascii_lowercase + "_. ")
        position = data.draw(st.integers(0, len(path[-1])))
        target[path[-1][:position] + data.draw(letters) + path[-1][position + data.draw(st.integers(0, 1)) :]] = value
    (folder / "x.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    loads_or_says_why("x.yaml", command=command)


@fuzz
@given(data=st.data(), command=COMMANDS)
def test_any_override(folder, data, command):
    (folder / "x.yaml").write_text(yaml.safe_dump(SOUND), encoding="utf-8")
    keys = st.sampled_from([".".join(map(str, path)) for path in sorted(places(SOUND), key=str)])
    texts = st.text(max_size=12) | VALUES.map(lambda value: json.dumps(value, default=str)) | SCALARS.map(str)
    override = st.builds("{}={}".format, keys | st.text(max_size=8), texts) | st.text(max_size=12)
    loads_or_says_why("x.yaml", data.draw(st.lists(override, min_size=1, max_size=3)), command)


@fuzz
@given(
    text=st.text()
    | st.text(alphabet="abc:-[]{}&*!|>'\"#%@`?,\n\t ${}<")
    | VALUES.map(lambda v: json.dumps(v, default=str))
)
def test_any_text_as_a_config(folder, text):
    (folder / "x.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    loads_or_says_why("x.yaml")


@fuzz
@given(raw=st.binary())
def test_any_bytes_as_a_config(folder, raw):
    (folder / "x.yaml").write_bytes(raw)
    loads_or_says_why("x.yaml")


@fuzz
@given(
    source=st.text(max_size=30) | st.sampled_from(["", ".", "..", "/", "\0", "~", "a" * 5000, "x.yaml/", "org/name"])
)
def test_any_source(folder, source):
    loads_or_says_why(source)

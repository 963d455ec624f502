"""A key that changes nothing is refused where it misleads, and told in a warning elsewhere."""

from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.errors import ConfigError

BASE = "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: {name: grpo}\n"
BANK = "model: tiny\nagent: memory_r1\nenv: memory_bank\ntrain: {name: grpo}\n"
OPENAI = "{kind: openai, model: m, base_url: 'http://localhost:1/v1', api_key_env: null}"
SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def warnings_of(folder, text, *overrides, command=None):
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return list(load_config("x.yaml", overrides, command=command).warnings)


@pytest.mark.parametrize("key", ["temperature", "top_p"])
@pytest.mark.parametrize("kind", ["{kind: hf}", "{kind: vllm}", "{kind: vllm_server}", OPENAI])
def test_the_policys_engine_has_no_decoding_of_its_own(folder, key, kind):
    (folder / "x.yaml").write_text(BASE + f"engine: {kind}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml", [f"engine.{key}=0.5"])
    assert caught.value.problems[0].startswith(f"command line: engine.{key}=0.5: has no effect on the policy")
    assert f"train.{key} in training, eval.{key} in evaluation" in str(caught.value)


def test_it_is_refused_in_a_file_at_its_line_even_with_the_default(folder):
    (folder / "x.yaml").write_text(BASE + "engine: {kind: hf, temperature: 0.0}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x\.yaml:5: engine\.temperature: has no effect"):
        load_config("x.yaml")


def test_helpers_keep_their_decoding(folder):
    text = BANK + f"engines: {{reader: {OPENAI}}}\n"
    words = [
        "agent.modules.answerer={interface: inference, engine: reader}",
        "engines.reader.temperature=0.5",
        "engines.reader.top_p=0.9",
    ]
    assert warnings_of(folder, text, *words) == []
    words = [words[0], words[2]]
    assert warnings_of(folder, text, *words) == ["engines.reader.top_p: 0.9 has no effect: temperature is 0"]


def test_a_written_run_has_no_policy_sampling_and_old_ones_load(folder):
    (folder / "x.yaml").write_text(BASE, encoding="utf-8")
    resolved = load_config("x.yaml")
    assert not {"temperature", "top_p"} & {*resolved.values["engine"]}
    old = resolved.to_yaml().replace("engine:\n  kind: hf\n", "engine:\n  kind: hf\n  temperature: 0.0\n  top_p: 1.0\n")
    assert "temperature: 0.0\n  top_p: 1.0\n" in old
    (folder / "old.yaml").write_text(old, encoding="utf-8")
    assert load_config("old.yaml").values == resolved.values
    with pytest.raises(ConfigError, match="has no effect on the policy"):
        load_config("old.yaml", ["engine.temperature=0.7"])


@pytest.mark.parametrize(
    ("text", "override", "word"),
    [
        (BASE, "train.loss.kl_estimator=k1", "train.loss.kl_estimator: 'k1' has no effect: kl_coef is 0"),
        (BASE, "train.loss.sapo_positive=2", "train.loss.sapo_positive: 2.0 has no effect: objective is ppo"),
        (BASE, "train.loss.kl_horizon=5", "train.loss.kl_horizon: 5 has no effect: kl_target is null"),
        (BASE, "train.loss.correction_high=3", "sampler_correction is none"),
        (BASE, "train.loss.constant_length=3", "weighting is token"),
        (
            BASE,
            "train.optimizer.min_lr_ratio=0.5",
            "train.optimizer.min_lr_ratio: 0.5 has no effect: schedule is constant",
        ),
        (BASE, "train.max_rollouts_per_step=3", "require_variance is false"),
        (BASE, "train.eval_every=3", "train.eval_every: 3 has no effect: data.eval names no evaluation set"),
        (BASE, "memory.search=bm25", "memory.search has no effect: agent 'memory_agent' has no memory bank"),
        (BASE, f"engines.reader={OPENAI}", "engines.reader has no effect: no module and no reward names it"),
        (BANK, "agent.turns=3", "agent.turns: 3 has no effect: read is session"),
        (BANK, "agent.modules.answerer={prompt: '{memory}', distill: false}", "agent.modules.answerer.distill: false"),
        (BANK, "eval={temperature: 0, top_p: 0.5}", "eval.top_p: 0.5 has no effect: temperature is 0"),
    ],
)
def test_a_key_without_effect_is_told(folder, text, override, word):
    found = warnings_of(folder, text, override)
    assert any(word in warning for warning in found), found


def test_the_options_of_a_frozen_learner_are_told(folder):
    agent = "{name: linear_reranker, interface: inference, learning_rate: 0.5, keep: 3}"
    found = warnings_of(folder, BANK.replace("memory_r1", f"{{name: memory_r1, modules: {{retriever: {agent}}}}}"))
    assert found == ["agent.modules.retriever.learning_rate: 0.5 has no effect: interface is inference"]


def test_an_adapter_behind_an_endpoint_is_told(folder):
    found = warnings_of(folder, BASE.replace("model: tiny", "model: {path: tiny, adapter: x}") + f"engine: {OPENAI}\n")
    assert found == ["model.adapter has no effect: the endpoint 'm' generates, not this model"]


def test_keys_of_the_trainer_are_not_told_outside_training(folder):
    assert warnings_of(folder, BASE, "train.loss.kl_estimator=k1", command="infer") == []


def test_a_helper_of_the_base_is_taken_away_by_null(folder):
    (folder / "x.yaml").write_text(BASE + f"engines: {{reader: {OPENAI}}}\n", encoding="utf-8")
    (folder / "y.yaml").write_text("base: x\nengines: {reader: null}\n", encoding="utf-8")
    assert load_config("y.yaml").config.engines == {}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_config_has_a_key_without_effect(path):
    assert not [warning for warning in load_config(path).warnings if "no effect" in warning]


ONLINE = "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: {name: online, steps: 1}\n"


def test_only_keys_that_the_user_wrote_are_told(folder):
    word = "train.eval_every: 3 has no effect: data.eval names no evaluation set"
    assert warnings_of(folder, ONLINE) == []
    assert warnings_of(folder, ONLINE, "train.eval_every=3") == [word]
    assert warnings_of(folder, ONLINE.replace("steps: 1", "steps: 1, eval_every: 3")) == [word]
    (folder / "written.yaml").write_text(load_config("x.yaml").to_yaml(), encoding="utf-8")
    assert load_config("written.yaml").warnings == ()
    assert load_config("written.yaml", ["train.eval_every=5"]).warnings == (word.replace("3", "5"),)


def test_a_users_own_part_is_his_writing(folder):
    (folder / "configs" / "train").mkdir(parents=True)
    (folder / "configs" / "train" / "mine.yaml").write_text("name: grpo\neval_every: 3\n", encoding="utf-8")
    found = warnings_of(folder, ONLINE.replace("{name: online, steps: 1}", "mine"))
    assert found == ["train.eval_every: 3 has no effect: data.eval names no evaluation set"]

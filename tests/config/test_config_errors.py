"""What is said about mistakes in a configuration: all at once, with file and line, what exists and the nearest name."""

import json

import pytest

from memfactory.config import dataset_component, load_config
from memfactory.config import readiness as readiness_file
from memfactory.errors import ConfigError
from memfactory.redaction import is_secret

BASE = "model: tiny\nagent: memory_agent\nenv: longcontext\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory without keys and without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def said(folder, text, overrides=(), command=None):
    """The problems of a config, which there must be."""
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("x.yaml", overrides, command=command)
    return list(caught.value.problems)


def test_all_problems_come_at_once_in_the_order_of_the_lines(folder):
    text = """\
model: {path: tiny, dtyp: float32}
agent:
  name: memory_agent
  chunk_tokns: 2500
  max_chunks: zero
env: {name: longcontext, rewards: {boxed_me: 1.0}}
train:
  name: grpo
  steps: 0
  learning_rate: 2e-5
  loss: {objective: pppo}
engine: {kind: vlm}
sede: 3
"""
    problems = said(folder, text)
    assert [problem.partition(";")[0] for problem in problems] == [
        "x.yaml:1: model.dtyp: unknown key",
        "x.yaml:4: agent.chunk_tokns: unknown key",
        "x.yaml:5: agent.max_chunks: expected a whole number",
        "x.yaml:6: env.rewards.boxed_me: no reward is called 'boxed_me'",
        "x.yaml:9: train.steps: expected at least 1",
        "x.yaml:10: train.learning_rate: unknown key",
        "x.yaml:11: train.loss.objective: no objective is called 'pppo'",
        "x.yaml:12: engine: there is no kind 'vlm'",
        "x.yaml:13: sede: unknown key",
    ]
    assert "did you mean 'dtype'? There are: adapter, attention," in problems[0]
    assert "did you mean 'chunk_tokens'?" in problems[1]
    assert problems[2].endswith("given 'zero'")
    assert "did you mean 'boxed_em'?" in problems[3]
    assert problems[4].endswith("given 0")
    assert "there is 'optimizer.learning_rate'." in problems[5]
    assert "'pppo'; did you mean 'ppo'?" in problems[6]
    assert problems[7].endswith("did you mean 'vllm'? There are: 'hf', 'vllm', 'auto', 'vllm_server', 'openai'")
    assert "did you mean 'seed'?" in problems[8]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=ten", "command line: train.steps=ten: expected a whole number; given 'ten'"),
        ("train.steps=true", "command line: train.steps=true: expected a whole number; given 'true'"),
        ("train.steps=2.5", "command line: train.steps=2.5: expected a whole number; given 2.5"),
        ("train.top_p=1.5", "command line: train.top_p=1.5: expected at most 1; given 1.5"),
        ("train.temperature=0", "command line: train.temperature=0: expected more than 0; given 0"),
        ("train.temperature=.inf", "command line: train.temperature=.inf: expected a finite number; given inf"),
        ("--train.lora=3", "command line: --train.lora=3: expected a mapping; given 3"),
        ("train.eval_at_end=maybe", "command line: train.eval_at_end=maybe: expected true or false; given 'maybe'"),
        ("model.path=[a]", "command line: model.path=['a']: expected text; given ['a']"),
        ("steps", "command line: steps: an override needs '='; write steps=value"),
        ("--resume-from", "command line: --resume-from: an override needs '='; write resume-from=value"),
        ("a..b=1", "command line: a..b=1: 'a..b' is not a key; write section.key=value"),
        ("seed=", "command line: seed=: the value is empty; write seed=null to unset it"),
        ("eval.metrics=[em", "command line: eval.metrics=[em: '[em' is not valid YAML"),
        ("seed.deeper=1", "command line: seed.deeper=1: seed is 0, not a mapping"),
        ("trackers.5=console", "command line: trackers.5=console: trackers is a list of 1, without a position '5'"),
        ("agent=memory_agnt", "command line: agent=memory_agnt: no agent is called 'memory_agnt'; did you mean"),
        ("trian.steps=5", "command line: trian.steps=5: trian: unknown key; did you mean 'train'?"),
        ("engines.judge.kind=openai", "command line: engines.judge.kind=openai: engines.judge.model: is missing"),
        (
            "env.rewards={f1:0.5,format: 1}",
            "command line: env.rewards={f1:0.5,format: 1}: YAML wants a space after a colon: {f1: 0.5}",
        ),
        ("train={base: gro}", "command line: train={base: 'gro'}: train: no trainer part is called 'gro'"),
    ],
)
def test_a_wrong_override_is_quoted(folder, override, message):
    problems = said(folder, BASE + "train: {name: grpo}\nseed: 0\ntrackers: [console]\n", [override])
    assert len(problems) == 1
    assert problems[0].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "x.yaml:2: a: written twice (first on line 1)"),
        ("a: [1\n", "x.yaml:2:1: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\tb: 1\n", "x.yaml:2:1: found character '\\t' that cannot start any token"),
        ("- a\n", "x.yaml:1: expected a mapping of sections such as `model:`"),
        ("a: !!set {b}\n", "x.yaml:1: a: the tag !!set is not supported; write plain values"),
        ("a: &b [*b]\n", "x.yaml:1: the aliases (*) of this file never end"),
        ("true: 1\n", "x.yaml:1: the key 'true' is not text; put it in quotes"),
        ("a: " + "[" * 3000, "x.yaml: nested too deeply"),
        ("", "x.yaml: agent: is missing; write for example `agent: memory_agent`"),
        (
            BASE.replace("tiny", "${oc.env:NOT_SET}"),
            "x.yaml:1: model.path: the environment variable NOT_SET is not set",
        ),
        (BASE.replace("tiny", "a${b"), "x.yaml:1: model.path: cannot read the ${...} in it"),
        (BASE.replace("tiny", "${b.c}"), "x.yaml:1: model.path: ${b.c} refers to a key that is not there"),
        (BASE.replace("tiny", "???"), "x.yaml:1: model.path: must be given: it is marked as missing (???)"),
        (BASE.replace("memory_agent", "{}"), "x.yaml:2: agent: needs `name`: which agent it is."),
        (BASE.replace("memory_agent", "{name: [1]}"), "x.yaml:2: agent.name: expected the name of a agent; given [1]"),
        (BASE + "engines: {judge: {kind: openai}}", "x.yaml:4: engines.judge.model: is missing"),
        (
            BASE + "engines: {judge: {model: a}}",
            "x.yaml:4: engines.judge: needs `kind`, one of 'hf', 'vllm', 'auto', 'vllm_server', 'openai'",
        ),
        (BASE + "base: y.yaml", "x.yaml:4: base: no config is called 'y.yaml'"),
        (BASE + "base: x.yaml", "x.yaml: base: a circle of configs based on each other"),
        (BASE + "plugins: [nowhere.at_all]", "x.yaml:4: plugins.0: plugin 'nowhere.at_all' cannot be imported"),
        (BASE + "plugins: [a b]", "x.yaml:4: plugins.0: 'a b' is neither a .py file nor a dotted module name"),
        (BASE + "data: {train: fact}", "x.yaml:4: data.train: no dataset is called 'fact'"),
        (BASE + "data: {eval: [a/b.json, c/b.json]}", "x.yaml:4: data.eval.1: two evaluation sets are called 'b'"),
        (BASE + "data: {train: {limit: 3}}", "x.yaml:4: data.train: a dataset needs `name` (a registered one), `path`"),
        (BASE + "train: {name: grpo, loss: {weighting: constant}}", "x.yaml:4: train.loss: weighting 'constant' needs"),
        (BASE + "model: {device: gpu}", "x.yaml:4: model: written twice (first on line 1)"),
        (
            BASE + "eval: {metrics: [boxed]}",
            "x.yaml:4: eval.metrics.0: no reward is called 'boxed'; did you mean",
        ),
        (BASE + "engines: {policy: hf}", "x.yaml:4: engines.policy: the name 'policy' is taken"),
        (BASE + "engine: {kind: openai, model: a, base_url: b}", "x.yaml:4: engine.base_url: 'b' is not an address"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(folder, text, message):
    problems = said(folder, text)
    assert problems[0].startswith(message)


def test_an_option_in_both_forms_in_one_file_is_told(folder):
    agent = "agent:\n  name: memory_agent\n  max_chunks: 3\n  modules:\n    memory: {max_chunks: 2}\n"
    problems = said(folder, f"model: tiny\nenv: longcontext\n{agent}")
    assert problems == ["x.yaml:5: agent.max_chunks: is given twice, here and under `modules` (x.yaml:7)"]


def test_a_module_may_only_name_an_engine_that_exists(folder):
    agent = "agent: {name: memory_agent, interface: inference, engine: jugde}"
    text = f"model: tiny\n{agent}\nenv: longcontext\nengines: {{judge: {{kind: openai, model: a}}}}\n"
    assert said(folder, text) == [
        "x.yaml:2: agent.engine: no engine is called 'jugde'; did you mean 'judge'? There are: judge, policy. "
        "Add it under `engines:`."
    ]
    (problem,) = said(folder, text.replace("jugde", "judge").replace("inference", "rollout"))
    assert "interface 'rollout' generates with the policy" in problem


@pytest.mark.parametrize(
    "line",
    [
        "engines: {judge: {kind: openai, model: a, api_key: sk-secret}}",
        "engines: {judge: {kind: openai, model: a, base_url: 'https://me:sk-secret@host'}}",
        "engines: {judge: {kind: openai, model: '${oc.env:MY_API_KEY}'}}",
        "swanlab_api_key: sk-secret",
    ],
)
def test_a_secret_is_refused_and_not_repeated(folder, monkeypatch, line):
    monkeypatch.setenv("MY_API_KEY", "sk-secret")
    problems = said(folder, BASE + line + "\n")
    assert "holds no secrets; name an environment variable" in problems[0]
    assert "sk-secret" not in "".join(problems)
    problems = said(folder, BASE, ["engines.judge={kind: openai, password: sk-secret}", "engines.x.api_key=sk-secret"])
    assert "sk-secret" not in "".join(problems)


def test_only_keys_of_secrets_are_taken_for_secrets():
    assert all(map(is_secret, ("api_key", "OPENAI_API_KEY", "hf_token", "token", "password", "client_secret")))
    assert not any(map(is_secret, ("api_key_env", "memory_tokens", "eos_token", "max_tokens", "tokenizer", "key")))


def test_what_a_command_does_not_use_is_not_asked_for(folder):
    text = BASE + "train: {name: grpo}\ndata: {train: missing.jsonl}\n"
    (problem,) = said(folder, text, command="train")
    assert problem == f"x.yaml:5: data.train.path: there is no file 'missing.jsonl' in {folder}"
    assert load_config("x.yaml", command="infer").config.data.train is not None


def test_training_needs_a_trainer_data_and_a_local_model(folder):
    text = BASE.replace("memory_agent", "{name: memory_agent, interface: inference}")
    problems = said(folder, text + "engine: {kind: openai, model: a, api_key_env: ''}\n", command="train")
    assert problems == [
        "x.yaml:1: train: is missing: training needs a trainer, such as `train: {name: grpo}`",
    ]
    problems = said(folder, text + "train: {name: grpo}\nengine: {kind: openai, model: a}\n", command="train")
    assert [problem.partition(":")[2].partition(" ")[2].partition(":")[0] for problem in problems] == [
        "data.train",
        "agent",
        "engine.kind",
        "engine.api_key_env",
    ]


def test_a_missing_key_is_told_where_its_engine_is_used(folder, monkeypatch):
    text = BASE + "engines: {judge: {kind: openai, model: big}}\n"
    (folder / "x.yaml").write_text(text)
    load_config("x.yaml", command="infer")
    text = text.replace("agent: memory_agent", "agent: {name: memory_agent, interface: inference, engine: judge}")
    (problem,) = said(folder, text, command="infer")
    assert (
        "engines.judge.api_key_env: the key of 'big' is expected in the environment variable OPENAI_API_KEY" in problem
    )
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    load_config("x.yaml", command="infer")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.attention=flash_attention_2"],
            "model.attention=flash_attention_2: flash_attention_2 needs a",
        ),
        (["model.device=cuda:1"], "model.device=cuda:1: 'cuda:1' is asked for, but no CUDA GPU is found"),
        (["engine.kind=vllm"], "engine.kind=vllm: vLLM needs a CUDA GPU"),
        (["train.optimizer.kind=adamw_8bit"], "train.optimizer.kind=adamw_8bit: adamw_8bit needs a CUDA GPU"),
        (["model.path=./nowhere"], "model.path=./nowhere: there is no folder './nowhere'"),
        (["model.path=tinny"], "model.path=tinny: there is no folder 'tinny'; did you mean 'tiny'?"),
        (["model.adapter=./nowhere"], "model.adapter=./nowhere: there is no folder './nowhere'"),
        (["model.chat_template=a.jinja"], "model.chat_template=a.jinja: there is no file 'a.jinja'"),
    ],
)
def test_what_this_machine_lacks_is_told(folder, overrides, message):
    (folder / "rows.jsonl").write_text("{}")
    text = BASE + "train: {name: grpo}\ndata: {train: rows.jsonl}\n"
    assert said(folder, text, overrides, command="train")[0].startswith(f"command line: {message}")


def test_a_place_where_no_run_folder_can_be_is_told(folder):
    (folder / "rows.json").write_text(json.dumps([{"context": "a", "input": "b", "answers": ["c"]}]))
    (folder / "words").write_text("")
    text = BASE + "train: {name: grpo}\ndata: {train: rows.json}\n"
    for place in ("words", "words/run"):
        problems = said(folder, text, [f"output={place}"], command="train")
        assert problems == [f"command line: output={place}: {folder / 'words'} is a file, no folder"]


def test_a_missing_extra_is_named_with_the_command_that_installs_it(folder, monkeypatch):
    monkeypatch.setattr(readiness_file, "has_cuda", lambda: True)
    text = BASE.replace("tiny", "{path: tiny, attention: flash_attention_2}") + "engine: vllm\n"
    problems = said(folder, text, command="infer")
    assert "pip install 'memfactory[flash-attn]'; or use auto or sdpa" in problems[0]
    assert "pip install 'memfactory[vllm]'; or use kind: hf" in problems[1]


def test_what_can_work_but_deserves_a_word_is_a_warning(folder):
    train = "train: {name: grpo, group_size: 1, top_p: 0.9, optimizer: {schedule: linear, warmup_steps: 100}}\n"
    (folder / "rows.jsonl").write_text("{}")
    (folder / "x.yaml").write_text(
        BASE.replace("tiny", "{path: tiny, dtype: bfloat16}") + train + "data: {train: rows.jsonl}\n"
    )
    warnings = load_config("x.yaml", command="train").warnings
    assert [warning.partition(":")[0] for warning in warnings] == [
        "train.optimizer.warmup_steps",
        "train.top_p",
        "train.group_size",
        "model.dtype",
    ]


def test_a_credited_step_that_no_module_has_is_a_warning(folder):
    (folder / "rows.jsonl").write_text("{}")
    (folder / "x.yaml").write_text(
        "model: tiny\nagent: memory_r1\ntrain: grpo\ndata: {train: rows.jsonl}\n"
        "env: {name: memory_bank, rewards: {em: 1.0}, steps: {extract: {em: 1.0}, updat: {em: 1.0}}}\n"
    )
    (warning,) = load_config("x.yaml", command="train").warnings
    assert warning == (
        "env.steps.updat credits nothing: no step of this agent is called 'updat'; did you mean 'update'? "
        "There are: answer, extract, update."
    )


def test_a_source_that_is_nothing_names_the_nearest_config(folder):
    with pytest.raises(ConfigError, match="did you mean 'memagent_qwen3_4b'"):
        load_config("configs/memagent_qwen3_4.yaml")
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"not a run \(it has no config.yaml\), a checkpoint or a model"):
        load_config("empty")


def test_a_run_without_a_model_yet_cannot_be_evaluated(folder):
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text(BASE)
    (folder / "run/metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="neither final/ nor a checkpoint yet"):
        load_config("run", command="eval")


def test_a_dataset_can_be_checked_on_its_own(folder):
    assert dataset_component("a/b.json", folder).options.path == "a/b.json"
    with pytest.raises(ConfigError, match="limit: expected at least 1; given 0"):
        dataset_component({"path": "a.json", "limit": 0}, folder)


def test_an_adapter_that_does_not_name_its_model_is_told(folder):
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="does not say which model the adapter belongs to"):
        load_config("adapter")

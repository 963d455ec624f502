"""The plan of a run takes little time and memory whatever is planned, and says only what can be acted on."""

import json
import tracemalloc

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.plan.lengths import SAMPLED_TASKS
from memfactory.plan.memory import Device
from memfactory.plan.plan import make_plan
from memfactory.plan.work import Forecast

CONFIG = """
model: {path: tiny}
agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 24, answer_tokens: 12}
env: longcontext
data: {train: {name: facts, rows: 64}}
train: {name: grpo, prompts_per_step: 2, group_size: 4}
"""
SMALL = Device("a GPU of 1 byte", 1, cuda=True)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path / "run.yaml"


def lengths(config, *overrides):
    forecast = Forecast(load_config(config, overrides))
    assert forecast.lengths is not None and forecast.problems == []
    return forecast.lengths


def test_a_plan_with_endless_replies_is_arithmetic(config):
    base = lengths(config)
    tracemalloc.start()
    found = lengths(config, "agent.memory_tokens=1000000")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    # Three sections and an answer: all but the first prompt hold a memory, which is 999,976 tokens longer.
    assert base.turns == found.turns == 4
    assert found.prompt == pytest.approx(base.prompt + 0.75 * (1_000_000 - 24))
    assert found.longest == base.longest + 2 * (1_000_000 - 24)


def test_a_plan_over_endless_texts_plays_fewer_of_them(tmp_path, config, monkeypatch):
    monkeypatch.setattr("memfactory.plan.lengths.SAMPLED_CHARACTERS", 3000)
    rows = [{"context": "One two three. " * 100, "input": f"Which is {n}?", "answers": ["three"]} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # 1,500 characters each.
    assert lengths(config, f"data.train={tmp_path / 'rows.jsonl'}").texts.texts == 2
    monkeypatch.setattr("memfactory.plan.lengths.SAMPLED_CHARACTERS", 10)
    assert lengths(config, f"data.train={tmp_path / 'rows.jsonl'}").texts.texts == 1
    assert SAMPLED_TASKS == 16


def advice(config, *overrides):
    (told,) = [p for p in make_plan(load_config(config, overrides), SMALL).problems if "GiB are needed" in p]
    return told


def test_only_what_is_not_on_yet_is_advised(config):
    told = advice(config)
    assert all(word in told for word in ("train.lora", "adamw_8bit", "bfloat16_stochastic", "gradient_checkpointing"))
    on = ["train.gradient_checkpointing=true", "train.optimizer.kind=adamw_8bit"]
    told = advice(config, *on)
    assert "gradient_checkpointing" not in told and "adamw_8bit" not in told and "train.lora" in told
    told = advice(config, *on, "train.lora={rank: 2}")
    assert "train.lora" not in told and "bfloat16_stochastic" not in told and "train.micro_batch_tokens" in told


def test_a_plan_for_another_machine_says_nothing_of_this_one(config, capfd):
    assert run(["train", str(config), "--dry-run", "--gpu-gib", "24", "model.dtype=bfloat16"]) == 0
    told = capfd.readouterr()
    assert "on a CPU is slow" not in told.out + told.err and "Memory against a GPU of 24 GiB" in told.out


@pytest.mark.parametrize(
    ("description", "problem"),
    [('{"peft_type": "IA3"}', None), ("[]", None), ("{", "adapter_config.json cannot be read")],
)
def test_an_adapter_of_another_kind_can_be_planned_for(tmp_path, config, description, problem):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(description)
    problems = make_plan(load_config(config, [f"model.adapter={tmp_path / 'adapter'}"])).problems
    assert any(problem in told for told in problems) if problem else problems == ()


def test_warm_up_is_counted_in_optimizer_steps(config):
    spread = ["train.steps=2", "train.optimizer.schedule=cosine", "train.optimizer.warmup_steps=3"]
    assert any("3 of 2 optimizer steps are warm-up" in told for told in load_config(config, spread).warnings)
    assert not any("warm-up" in told for told in load_config(config, [*spread, "train.minibatches=2"]).warnings)


def test_a_plan_without_its_model_still_has_its_name(tmp_path, config):
    found = make_plan(load_config(config, [f"model.path={tmp_path / 'missing'}"]))
    assert found.title == "Plan of run" and found.problems

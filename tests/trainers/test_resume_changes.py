"""What a resumed run says of training data and schedules that are not what they were."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from memfactory.cli.app import run
from memfactory.config.optimizer import OptimizerOptions
from memfactory.data.base import GeneratedRows, Row
from memfactory.data.digest import rows_hash
from memfactory.policy.optimizer import Schedule

GRPO = """
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{em: 1.0}}}}
data: {{train: rows.jsonl}}
train: {{name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, eval_at_start: false, eval_at_end: false}}
trackers: []
output: out
"""
SFT = """
model: {{path: {model}}}
agent: memory_agent
env: longcontext
data: {{train: {data}}}
train: {{name: sft, steps: 1, batch_size: 2, eval_at_start: false, eval_at_end: false}}
trackers: []
output: out
"""
MIXTURE = "{name: mixture, rows: 50, parts: [{weight: 1, data: {name: file, path: chats.jsonl}}]}"


def task(number: int) -> dict[str, object]:
    return {"context": f"Ada has {number} cats.", "input": "How many cats has Ada?", "answers": [str(number)]}


def chat(number: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Hello {number}."}]}


def written(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def work(tmp_path: Path, small_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "grpo.yaml").write_text(GRPO.format(model=small_model_path))
    (tmp_path / "sft.yaml").write_text(SFT.format(model=small_model_path, data="chats.jsonl"))
    (tmp_path / "mixed.yaml").write_text(SFT.format(model=small_model_path, data=MIXTURE))
    written(tmp_path / "rows.jsonl", [task(1), task(2)])
    written(tmp_path / "chats.jsonl", [chat(1), chat(2)])
    return tmp_path


@pytest.mark.parametrize("name", ["grpo", "sft", "mixed"])
def test_changed_training_data_is_refused_on_resume(work: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", f"{name}.yaml"]) == 0
    assert run(["train", f"{name}.yaml", "--resume", "train.steps=2"]) == 0
    capsys.readouterr()
    written(work / "rows.jsonl", [task(1), task(2), task(3)])
    written(work / "chats.jsonl", [chat(1), chat(2), chat(3)])
    assert run(["train", f"{name}.yaml", "--resume", "train.steps=3"]) == 2
    told = capsys.readouterr().err
    assert "the training data has changed since" in told and "model.path=" in told


def test_a_row_within_a_mixture_counts() -> None:
    parts = [[Row({"text": str(number)}, "rows") for number in range(500)] for _ in range(2)]
    parts[1][77] = Row({"text": "changed"}, "rows")
    first, second = (rows_hash(GeneratedRows(lambda index: Row({}, "made"), 100_000, [part])) for part in parts)
    assert first != second


def test_a_schedule_spread_over_more_steps_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="memfactory")
    options = OptimizerOptions(learning_rate=1.0, schedule="linear")
    schedules = [Schedule(torch.optim.SGD([torch.zeros(1)]), options, total) for total in (10, 20, 10)]
    for _ in range(10):
        schedules[0].step()
    schedules[2].load_state_dict(schedules[0].state_dict())
    assert caplog.text == ""
    schedules[1].load_state_dict(schedules[0].state_dict())
    assert "spread over 20 optimizer steps now, not over 10" in caplog.text
    assert "after step 10 the learning rate is 0.5 instead of 0" in caplog.text


def test_an_equal_learning_rate_is_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    options = OptimizerOptions(learning_rate=1.0, schedule="linear", warmup_steps=4)
    before, now = (Schedule(torch.optim.SGD([torch.zeros(1)]), options, total) for total in (10, 20))
    before.step()
    now.load_state_dict(before.state_dict())
    # Step 2 of 4 warm-up steps has half of the peak, however long the schedule is.
    assert caplog.messages[0].endswith("after step 1 the learning rate is 0.5")

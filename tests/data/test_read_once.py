"""Every dataset is read once in a run, before the weights are loaded, and what was read is handed on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.errors import DataError
from memfactory.evaluation import EvalOverrides, run_evaluation
from memfactory.registry import DATASETS
from memfactory.training import run_training

READS: Counter[str] = Counter()


class CountedOptions(DatasetOptions):
    """Options of `counted_rows`."""

    title: str
    """What its reads are counted under."""
    bad: bool = False
    """Whether a row lacks its answers."""


@DATASETS.register("counted_rows")
class CountedRows(Dataset):
    """A few rows whose reads are counted."""

    Options = CountedOptions

    def rows(self):
        READS[self.options.title] += 1
        row = {"input": "Where?", "context": "Ann lives in Oslo.", "answers": "Oslo"}
        bad = [Row({"input": "Where?", "context": "?"}, "row 9")] if self.options.bad else []
        return [Row({**row, "index": number}, f"row {number}") for number in range(4)] + bad


CONFIG = """
model: {path: tiny, cpu_threads: 1}
agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 8, answer_tokens: 4}
env: {name: longcontext, rewards: {boxed_em: 1.0}}
data:
  train: {name: counted_rows, title: train, bad: true, skip_bad_rows: true}
  eval: {held: {name: counted_rows, title: held}}
train: {name: grpo, steps: 1, prompts_per_step: 2, group_size: 2}
trackers: []
eval: {samples: 1, baselines: [no_memory]}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    READS.clear()
    Path("run.yaml").write_text(CONFIG)
    return lambda *overrides: load_config("run.yaml", overrides, command="train")


def test_training_reads_every_dataset_once(config, caplog):
    run_training(config("output=run"))
    assert READS == {"train": 1, "held": 1}
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        "1 rows of the dataset of CountedRows were left out; the first:\n  row 9 has no gold answers: "
        "expected 'answers' or 'outputs' or 'reward_model.ground_truth' or 'answer'; it has input, context"
    ]


def test_evaluation_reads_a_dataset_once_for_all_its_models(config):
    targets = [config(), config("seed=1")]
    run_evaluation(targets, EvalOverrides(("held",), limit=1), output=Path("out"))
    assert READS == {"held": 1}


def test_another_reading_of_the_same_rows_is_read_for_itself(config):
    targets = [config(), config("env.fields.question=context")]
    run_evaluation(targets, EvalOverrides(("held",), limit=1), output=Path("out"))
    assert READS == {"held": 2}


def test_a_bad_row_is_told_before_the_model_is_loaded(config):
    with pytest.raises(DataError, match="row 9 has no gold answers"):
        run_training(config("output=run", "data.train.skip_bad_rows=false", "model.path=no/such-model-anywhere"))

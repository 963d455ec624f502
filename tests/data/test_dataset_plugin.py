"""A dataset from a user's own file: listed, validated, planned, trained and resumed like one that comes along."""

import json
from pathlib import Path

import pytest

from memfactory.cli.app import run

DATASET = '''
import csv
from collections.abc import Sequence
from itertools import islice

from pydantic import Field

from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.data.rows import find_file
from memfactory.registry import DATASETS


class CsvOptions(DatasetOptions):
    """Options of `csv_questions`."""

    path: str
    """The CSV file; relative to the working directory, else to the config's folder."""
    delimiter: str = Field(",", min_length=1, max_length=1)
    """The character between two fields."""


@DATASETS.register("csv_questions")
class CsvQuestions(Dataset[CsvOptions]):
    """Questions in a CSV file with the columns question, context and answer."""

    @property
    def source(self) -> str:
        return self.options.path

    def rows(self) -> Sequence[Row]:
        with open(find_file(self.options.path, self.base_dir), encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file, delimiter=self.options.delimiter)
            rows = (Row(line, f"{self.options.path} line {lines.line_num}") for line in lines)
            return list(islice(rows, self.options.limit))
'''
CONFIG = """
plugins: [my_dataset.py]
model: {path: tiny}
agent: {name: memory_agent, chunk_tokens: 200, memory_tokens: 4, answer_tokens: 4}
env: longcontext
data:
  train: {name: csv_questions, path: questions.csv, delimiter: ";"}
train: {name: grpo, steps: 1, prompts_per_step: 2, generations: 2}
trackers: []
"""
ROWS = """question;context;answer
Where does Ada live?;Ada lives in Oslo.;Oslo
Where does Boris live?;Boris, in Rome.;Rome
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, own_components) -> Path:
    """A user's folder with a dataset, its rows and a config that names them."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"my_dataset.py": DATASET, "questions.csv": ROWS, "my_run.yaml": CONFIG}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_plugin_dataset_is_listed_with_its_options(folder, capsys):
    assert run(["list", "datasets", "--verbose", "--config", "my_run.yaml"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "csv_questions Questions in a CSV file with the columns question, context and answer." in listed
    assert "The character between two fields." in listed


def test_the_options_of_a_plugin_dataset_are_validated(folder, capsys):
    assert run(["config", "validate", "my_run.yaml"]) == 0
    (folder / "my_run.yaml").write_text(CONFIG.replace("delimiter", "delimeter"))
    assert run(["config", "validate", "my_run.yaml"]) == 2
    assert "data.train.delimeter: unknown key; did you mean 'delimiter'?" in " ".join(capsys.readouterr().err.split())


def test_a_bad_row_of_a_plugin_dataset_is_named_by_its_source(folder, capsys):
    (folder / "questions.csv").write_text(ROWS + ";A text without a question.;Oslo\n")
    assert run(["train", "my_run.yaml", "--dry-run"]) == 2
    assert "questions.csv line 4: field 'question' should be" in " ".join(capsys.readouterr().out.split())


def test_a_plugin_dataset_is_planned_trained_and_resumed(folder):
    assert run(["train", "my_run.yaml", "--dry-run"]) == 0
    assert run(["train", "my_run.yaml", "--output", "run"]) == 0
    (folder / "my_dataset.py").unlink()  # The run keeps a copy.
    assert run(["train", "run", "--resume", "train.steps=2"]) == 0
    steps = [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    transcripts = "".join(path.read_text() for path in (folder / "run" / "transcripts").glob("*.jsonl"))
    assert "Ada lives in Oslo." in transcripts and "Boris, in Rome." in transcripts

"""Datasets by name: names that differ in signs alone, signs that mean something elsewhere, datasets in a mixture."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from memfactory.config import load_config
from memfactory.data.mixture import MixtureDataset, MixtureOptions
from memfactory.errors import ConfigError, DataError
from memfactory.evaluation.results import DatasetResult, EvalHistory, metric_result
from memfactory.evaluation.targets import EvalOverrides, prepare
from memfactory.figures import evaluation_figure
from memfactory.memory import embedder
from memfactory.memory.bank import BankSource
from memfactory.types import MemoryItem

CONFIG = """
model: tiny
agent: memory_agent
env: longcontext
data:
  train: {train}
  eval: {eval}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def loaded(train="null", eval="{}"):
        Path("run.yaml").write_text(CONFIG.replace("{train}", train).replace("{eval}", eval))
        return load_config("run.yaml")

    return loaded


def test_evaluation_sets_whose_names_differ_in_signs_alone_are_refused(load):
    with pytest.raises(ConfigError) as caught:
        load(eval='{"a/b": facts, "a-b": {name: facts, seed: 9}}')
    assert "'a-b' and 'a/b' differ only in punctuation, so their results would share a file" in str(caught.value)
    assert set(load(eval='{"a/b": facts, "a.b": facts}').config.data.eval) == {"a/b", "a.b"}


def test_datasets_named_on_the_command_line_are_kept_apart(load):
    Path("a b.jsonl").write_text("{}\n")
    Path("a-b.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="two datasets are called 'a b' and 'a-b', which differ in punctuation alone"):
        prepare([load()], EvalOverrides(("a b.jsonl", "a-b.jsonl")))


def test_models_whose_names_differ_in_signs_alone_have_samples_of_their_own(load):
    resolved = load(eval="{held: facts}")
    Path("run one.yaml").write_text(Path("run.yaml").read_text())
    Path("run-one.yaml").write_text(Path("run.yaml").read_text())
    targets = prepare([load_config("run one.yaml"), load_config("run-one.yaml"), resolved], EvalOverrides())
    assert len({target.records_path(Path("out"), "held") for target in targets}) == 3


@pytest.mark.parametrize("name", ["cost in $", "$a$ and $b", "x^{$"])
def test_a_dollar_sign_in_a_name_is_drawn_as_it_stands(name):
    found = metric_result({"q1": [1.0], "q2": [0.0]}, 1)
    assert found is not None
    result = DatasetResult({"em": found}, 2, 1, 0.0, "hash", {"em": {"q1": 1.0, "q2": 0.0}}, {})
    history = EvalHistory()
    history.add(1, {name: result})
    figure = evaluation_figure(history)
    assert figure is not None
    figure.canvas.draw()


def test_what_is_wrong_inside_a_mixture_is_told_with_its_line(load):
    with pytest.raises(ConfigError) as caught:
        wrong = "{data: {name: fact, rows: 3}}, {data: {name: facts, row: 3}}"
        load(train=f"{{name: mixture, parts: [{{data: {{name: facts}}}}, {wrong}]}}")
    told = caught.value.problems
    assert len(told) == 2 and all(problem.startswith("run.yaml:6") for problem in told)
    assert "data.train.parts.1.data" in told[0] and "fact" in told[0]
    assert "data.train.parts.2.data.row" in told[1]


def test_a_bank_with_more_vectors_than_are_held_is_saved_with_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "CACHE_BYTES", 40_000)
    bank = BankSource().open([MemoryItem(f"m{n}", "", f"text number {n}") for n in range(100)])
    bank.search("text 7", 3, mode="dense")
    bank.save(tmp_path / "bank")
    (path,) = (tmp_path / "bank").glob("vectors-*.npy")
    assert len(numpy.load(path)) == 100


def test_bad_rows_are_left_out_of_a_whole_mixture_or_not_at_all(load):
    with pytest.raises(ConfigError, match="skip_bad_rows has no effect in a part; write it beside `parts`"):
        load(train="{name: mixture, parts: [{data: {name: facts, skip_bad_rows: true}}]}")


def test_a_part_of_a_mixture_without_rows_is_told(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    options = MixtureOptions.model_validate({"parts": [{"data": {"name": "file", "path": "none.jsonl"}}]})
    with pytest.raises(DataError, match=r"mixture: none.jsonl has no rows"):
        MixtureDataset(options, tmp_path)

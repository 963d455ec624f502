"""Overrides reach every section that has a default, whether the file writes it or not."""

import pytest

from memfactory.config import load_config
from memfactory.errors import ConfigError

BASE = "model: tiny\nagent: memory_agent\nenv: longcontext\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(folder, *overrides, text=BASE):
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return load_config("x.yaml", overrides).config


def problems_of(folder, *overrides, text=BASE):
    with pytest.raises(ConfigError) as caught:
        config_of(folder, *overrides, text=text)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("engine.share_prefixes=false", lambda c: c.engine.share_prefixes is False),
        ("engine.packed_weights_gib=0", lambda c: c.engine.packed_weights_gib == 0),
        ("engine={max_batch: 3}", lambda c: (c.engine.kind, c.engine.max_batch) == ("hf", 3)),
        ("engine.kind=vllm", lambda c: c.engine.kind == "vllm"),
        ("memory.search=bm25", lambda c: c.memory.search == "bm25"),
        ("memory.embedder.dimensions=64", lambda c: c.memory.embedder.dimensions == 64),
        ("memory.embedder={dimensions: 64}", lambda c: c.memory.embedder.kind == "lexical"),
        ("eval.samples=2", lambda c: c.eval.samples == 2),
        ("trackers.1.mode=local", lambda c: [t.kind for t in c.trackers] == ["console", "swanlab"]),
        ("trackers[0].kind=jsonl", lambda c: [t.kind for t in c.trackers] == ["jsonl", "swanlab"]),
        ("model.dtype=float32", lambda c: c.model.dtype == "float32"),
        ("data.shuffle=false", lambda c: c.data.shuffle is False),
        ("agent.chunk_tokens=9", lambda c: c.agent.modules["memory"].options.chunk_tokens == 9),
        ("env.rewards.em=0.5", lambda c: c.env.options.rewards["em"] == 0.5),
    ],
)
def test_an_override_reaches_a_section_that_the_file_leaves_out(folder, override, read):
    assert read(config_of(folder, override))


def test_options_of_a_trainer_reach_what_it_leaves_out(folder):
    found = config_of(folder, "train.optimizer.kind=auto", "train.lora.rank=2", text=BASE + "train: {name: grpo}\n")
    assert (found.train.options.optimizer.kind, found.train.options.lora.rank) == ("auto", 2)


def test_a_kind_may_be_left_out_in_a_file_too(folder):
    text = BASE + "engine: {max_batch: 3}\nmemory: {embedder: {dimensions: 32}}\n"
    found = config_of(folder, text=text)
    assert (found.engine.kind, found.engine.max_batch, found.memory.embedder.dimensions) == ("hf", 3, 32)


def test_a_helper_without_a_kind_is_told_its_own_kinds(folder):
    told = problems_of(folder, "engines.judge.timeout=3")
    assert [words.partition("engines.judge: ")[2] for words in told] == [
        "needs `kind`, one of 'hf', 'vllm', 'auto', 'vllm_server', 'openai'"
    ]
    assert "needs `kind`, one of 'swanlab', 'jsonl', 'console'" in problems_of(folder, "trackers=[{mode: local}]")[0]


def test_a_key_of_another_kind_is_an_unknown_key(folder):
    told = problems_of(folder, "engine.share_prefixes=false", text=BASE + "engine: vllm\n")
    assert "engine.share_prefixes=false: unknown key" in told[0]


def test_a_short_form_is_opened_by_a_key_below_it(folder):
    text = BASE + "engines: {reader: {kind: hf, model: tiny}}\ndata: {train: facts, eval: {held_out: facts}}\n"
    found = config_of(
        folder, "engines.reader.model.dtype=float32", "data.train.rows=3", "data.eval.held_out.rows=2", text=text
    )
    assert (found.engines["reader"].model.path, found.engines["reader"].model.dtype) == ("tiny", "float32")
    assert (found.data.train.options.rows, found.data.eval["held_out"].options.rows) == (3, 2)


def test_a_key_below_an_unnamed_set_is_no_new_set(folder):
    told = problems_of(folder, "data.eval.limit=3", text=BASE + "data: {eval: facts}\n")
    assert told == ["command line: data.eval.limit=3: data.eval is 'facts', not a mapping"]


def test_a_mapping_is_merged_as_a_file_would_be(folder):
    text = BASE + "train: {name: grpo, optimizer: {learning_rate: 2e-5, weight_decay: 0.1}}\n"
    options = config_of(folder, "train.optimizer={learning_rate: 1e-4}", text=text).train.options.optimizer
    assert (options.learning_rate, options.weight_decay) == (1e-4, 0.1)


@pytest.mark.parametrize("word", ["base=quickstart", "resolved=true"])
def test_what_counts_in_files_only_is_no_override(folder, word):
    assert "counts in files only" in problems_of(folder, word)[0]

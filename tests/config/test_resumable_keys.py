"""Which keys a resumed run may change: what errors ask to be changed, and nothing that is trained otherwise."""

import pytest

from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.run_folder import refuse_another_config

RUN = """
model: tiny
agent: memory_agent
env: {name: longcontext, rewards: {boxed_em: 1.0}}
data: {train: {name: facts, rows: 8}}
train: {name: TRAINER}
engines: {judge: {kind: openai, model: m}}
"""


@pytest.fixture
def change(tmp_path):
    def changed(*words, trainer="grpo"):
        (tmp_path / "run.yaml").write_text(RUN.replace("TRAINER", trainer))
        (tmp_path / "config.yaml").write_text(load_config(tmp_path / "run.yaml").to_yaml())
        refuse_another_config(tmp_path, load_config(tmp_path / "run.yaml", words).values)

    return changed


@pytest.mark.parametrize(
    "word",
    [
        "engine.max_batch_tokens=4096",
        "engine.max_batch=8",
        "engine.prefill_tokens=512",
        "engines.judge.base_url=http://127.0.0.1:9/v1",
        "engines.judge.retries=9",
        "train.micro_batch_tokens=512",
        "train.gradient_checkpointing=true",
        "train.max_unknown_fraction=0.5",
    ],
)
def test_what_an_error_asks_for_may_be_changed_when_a_run_goes_on(change, word):
    change(word)


@pytest.mark.parametrize(
    "word", ["train.epochs=2", "train.group_size=2", "engines.judge.model=other", "train.overlong=drop", "seed=3"]
)
def test_what_trains_otherwise_is_refused(change, word):
    with pytest.raises(ConfigError, match="cannot be resumed"):
        change(word)

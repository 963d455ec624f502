"""Which keys a resumed run may change: what errors ask to be changed, and nothing that is trained otherwise."""

import pytest
import yaml

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
        refuse_another_config(tmp_path, load_config(tmp_path / "run.yaml", words))

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


EARLIER = ("agent.modules.memory.trim_chunks", "engines.judge.stream", "engine.weight_copy")


@pytest.fixture
def earlier_run(tmp_path):
    """Write the config of a run by a version that did not know EARLIER, with a correction for every run."""

    def written(*words, correction="none"):
        (tmp_path / "run.yaml").write_text(RUN.replace("TRAINER", "grpo"))
        values = load_config(tmp_path / "run.yaml", words).values
        for key in EARLIER:
            *sections, name = key.split(".")
            section = values
            for part in sections:
                section = section[part]
            del section[name]
        values["train"]["loss"]["sampler_correction"] = correction
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        (tmp_path / "metrics.jsonl").touch()
        return tmp_path

    return written


def test_a_run_of_an_earlier_version_goes_on_by_its_own_config_and_by_that_it_began_with(earlier_run):
    folder = earlier_run()
    refuse_another_config(folder, load_config(folder))
    refuse_another_config(folder, load_config(folder / "run.yaml"))


def test_a_key_that_an_earlier_version_did_not_know_may_not_be_changed(earlier_run):
    folder = earlier_run()
    with pytest.raises(ConfigError, match=r"trim_chunks: False in .*, now True"):
        refuse_another_config(folder, load_config(folder / "run.yaml", ["agent.trim_chunks=true"]))


@pytest.mark.parametrize("words", [("model.dtype=bfloat16",), ("train.loss.sampler_correction=sequence_mask",)])
def test_another_correction_than_the_one_of_the_run_is_refused(earlier_run, words):
    folder = earlier_run(words[0]) if "dtype" in words[0] else earlier_run()
    with pytest.raises(ConfigError, match="sampler_correction: 'none' in"):
        refuse_another_config(folder, load_config(folder / "run.yaml", words))

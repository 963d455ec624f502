"""A model, run or config that is not there: the nearest one, the command that makes it, or the forms of its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memfactory.api.traces import write_traces
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.files.assets import asset
from memfactory.model.loading import load_tokenizer
from memfactory.model.near_models import FORMS, is_model, model_hint, nearest_place
from memfactory.model.options import ModelConfig

FETCH = "`memfactory data model smollm2 --output {}` makes the folder of SmolLM2-135M-Instruct"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model folder, a GGUF file, a run and a config."""
    monkeypatch.chdir(tmp_path)
    for place in ("models/gemma", "runs/first/final"):
        Path(place).mkdir(parents=True)
        Path(place, "config.json").write_text("{}")
    Path("models/gemma_q4.gguf").write_bytes(b"GGUF")
    Path("runs/first/config.yaml").write_text("{}")
    Path("runs/first/metrics.jsonl").write_text("")
    Path("mine.yaml").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("models/gema", "model folder; did you mean 'models/gemma'?"),
        ("gema", "model folder; did you mean 'models/gemma'?"),
        ("runs/frst", "model folder; did you mean 'runs/first'?"),
        ("run/first/final/", "model folder; did you mean 'runs/first/final'?"),
        ("mne.yaml", "model folder; did you mean 'mine.yaml'?"),
        ("models/smolm2", f"model folder; {FETCH.format('models/smollm2')}."),
        ("models/smollm2", f"model folder; {FETCH.format('models/smollm2')}."),
        ("models/another", f"model folder; {FORMS}; `memfactory list configs`"),
        ("quickstrt", "no config is called 'quickstrt'; did you mean 'quickstart'?"),
    ],
)
def test_a_misspelt_source_is_offered_the_nearest_of_its_kind(folder, source, told):
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert told in str(caught.value)
    assert "smollm2_rmm" not in str(caught.value) or source == "quickstrt"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        (
            "models/gema",
            "did you mean 'models/gemma'? A model is a folder, a .gguf file, a hub id such as org/name, or",
        ),
        ("model/Gemma", "did you mean 'models/gemma'?"),
        ("gemma-q4", "did you mean 'models/gemma_q4.gguf'?"),
        ("deep/models/smollm2", FETCH.format("deep/models/smollm2")),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", FETCH.format("models/smollm2")),
        ("tinny", "did you mean 'tiny'?"),
        ("org/name", FORMS),
        ("bad\0name", FORMS),
    ],
)
def test_the_hint_of_a_missing_model_names_what_there_is(folder, path, hint):
    assert model_hint(path).startswith(hint)


def test_the_folder_of_the_config_is_searched_too(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert nearest_place("models/gema", folder, is_model) == str(folder / "models" / "gemma")
    assert nearest_place("models/gema", Path(), is_model) is None


def test_a_missing_model_path_is_offered_the_nearest_model(folder):
    text = "model: {path: ./models/gema}\nagent: memory_agent\nenv: longcontext\n"
    Path("mine.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"mine.yaml:1: model.path: there is no folder './models/gema'; did you mean 'models/gemma'"
    ):
        load_config("mine.yaml", command="infer")
    with pytest.raises(ConfigError, match=r"there is no file 'models/gemma_q8.gguf'; did you mean 'models/gemma_q4"):
        load_config("mine.yaml", ["model.path=models/gemma_q8.gguf"], command="infer")
    # It could be a hub id, so only the attempt to load it tells.
    with pytest.raises(ConfigError, match=r"cannot be fetched .*; did you mean 'models/gemma'\? A model is"):
        load_tokenizer(ModelConfig(path="models/gema"))


def test_a_missing_adapter_is_offered_the_nearest_adapter(folder):
    Path("runs/lora").mkdir()
    Path("runs/lora/adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"there is no folder './runs/lore'; did you mean 'runs/lora'\?"):
        load_config("tiny", ["model.adapter=./runs/lore"], command="infer")


CONFIG = {
    "model": {"path": "runs/none/final"},
    "agent": "memory_agent",
    "env": "longcontext",
    "data": {"train": {"name": "facts", "rows": 2}},
    "train": {"name": "grpo", "eval_every": 3},
}


def test_traces_without_the_model_say_whose_tokenizer_they_take(folder):
    with pytest.raises(ConfigError) as caught:
        write_traces(CONFIG, folder / "t.jsonl")
    assert "config: model.path: there is no folder 'runs/none/final'" in str(caught.value)
    assert "Traces take only the tokenizer" in str(caught.value)
    assert "model.path=models/smollm2 after `memfactory data model smollm2 --output" in str(caught.value)
    with pytest.raises(ConfigError, match=r"config: data.train.path: there is no file 'rows.jsonl' in"):
        write_traces({**CONFIG, "data": {"train": "rows.jsonl"}}, folder / "t.jsonl", "model.path=tiny")


def test_traces_warn_of_no_setting_of_the_trainer(folder, caplog):
    with pytest.raises(ConfigError):
        load_config("tiny", ["train=grpo", "train.eval_every=3"], command="train")
    assert any("eval_every" in text for text in load_config("tiny", ["train=grpo", "train.eval_every=3"]).warnings)
    write_traces(CONFIG, folder / "t.jsonl", "model.path=tiny")
    assert "train." not in caplog.text


def test_traces_take_a_tokenizer_without_a_model(folder):
    own = asset("tiny") / "tokenizer.json"
    write_traces(CONFIG, folder / "model.jsonl", "model.path=tiny")
    Path("own").mkdir()
    shutil.copy(own, "own/tokenizer.json")
    for name in ("own", "own/tokenizer.json"):
        write_traces(CONFIG, folder / "alone.jsonl", f"model.path={name}")
        assert (folder / "alone.jsonl").read_bytes() == (folder / "model.jsonl").read_bytes()
        with pytest.raises(ConfigError, match=r"model.path"):
            load_config("tiny", [f"model.path={name}"], command="eval")


def test_traces_tell_of_a_folder_or_file_that_is_no_tokenizer(folder):
    Path("empty").mkdir()
    Path("broken.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"empty is not a model folder: .*\(a tokenizer.json alone is enough\)"):
        write_traces(CONFIG, folder / "t.jsonl", "model.path=empty")
    with pytest.raises(ConfigError, match=r"the tokenizer '.*broken.json' that measures the chunks cannot be loaded"):
        write_traces(CONFIG, folder / "t.jsonl", "model.path=broken.json")

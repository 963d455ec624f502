"""A GGUF file wherever a config or a command names a model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from memfactory.build import engine_name
from memfactory.config import load_config
from memfactory.engines.vllm.checks import check_format
from memfactory.errors import ConfigError
from memfactory.evaluation.targets import EvalOverrides, prepare
from memfactory.model.loading import load_chat, load_model

BASE = "agent: memory_agent\nenv: longcontext\ntrain: {name: grpo}\ndata: {train: {name: facts, rows: 4}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_gguf_path: Path) -> Path:
    shutil.copy(small_gguf_path, tmp_path / "small.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path


def problems(folder: Path, text: str) -> list[str]:
    (folder / "x.yaml").write_text(BASE + text)
    with pytest.raises(ConfigError) as raised:
        load_config(folder / "x.yaml", command="train")
    return [problem.replace(str(folder), "DIR") for problem in raised.value.problems]


def test_a_gguf_file_beside_the_config_is_its_model(folder: Path):
    (folder / "x.yaml").write_text(BASE + "model: small.gguf\nengines: {aide: {kind: hf, model: small.gguf}}\n")
    config = load_config(folder / "x.yaml", command="train").config
    assert config.model.path == str(folder / "small.gguf")
    aide = config.engines["aide"]
    assert aide.model.path == str(folder / "small.gguf")
    before = engine_name(aide, config)
    with open(folder / "small.gguf", "ab") as file:
        file.write(b"\0")
    assert engine_name(aide, config) != before


def test_an_unusable_gguf_file_is_named_with_file_and_line(folder: Path):
    content = (folder / "small.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(content[:-100])
    (folder / "words.txt").write_text("words that are no model at all")
    cut = f"was cut short: it has {len(content) - 100:,} bytes, and its weights end at {len(content):,}"
    for name, words in [
        ("cut.gguf", f"'DIR/cut.gguf' {cut}"),
        ("words.txt", "'DIR/words.txt' is no GGUF file: it begins with b'word', not b'GGUF'"),
        ("models/none.gguf", "there is no file 'models/none.gguf'"),
    ]:
        assert problems(folder, f"model:\n  path: {name}\n") == [f"DIR/x.yaml:6: model.path: {words}"]


def test_a_folder_of_gguf_files_names_them(folder: Path):
    shutil.copy(folder / "small.gguf", folder / "models" / "q4.gguf")
    (problem,) = problems(folder, "model: {path: models}\n")
    assert "is not a model folder: it has no config.json, but GGUF files (q4.gguf); name one of them" in problem
    with pytest.raises(ConfigError, match=r"GGUF files \(q4\.gguf\); name one of them, such as '.*models/q4\.gguf'"):
        load_config(folder / "models", command="infer")


def test_a_folder_called_like_a_gguf_file_is_a_folder(folder: Path, small_model_path: Path):
    shutil.copytree(small_model_path, folder / "models" / "plain.gguf")
    (folder / "x.yaml").write_text(BASE + "model: models/plain.gguf\n")
    assert load_config(folder / "x.yaml", command="train").config.model.path == str(folder / "models" / "plain.gguf")
    resolved = load_config(folder / "models" / "plain.gguf", command="infer")
    assert load_chat(resolved.config.model).vocab_size == load_model(resolved.config.model, training=False).vocab_size
    check_format(str(folder / "models" / "plain.gguf"))


def test_a_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (problem,) = problems(folder, "model: {path: small.gguf}\n")
    assert problem.endswith("needs an extra that is not installed: pip install 'memfactory[gguf]'")


def test_a_gguf_file_is_a_target_of_eval_and_infer(folder: Path):
    shutil.copy(folder / "small.gguf", folder / "blob")
    (folder / "x.yaml").write_text(BASE + "model: tiny\n")
    for name, label in [("small.gguf", "small"), ("blob", "blob")]:
        resolved = load_config(folder / name, command="infer")
        assert resolved.config.model.path == str(folder / name)
        (target,) = prepare([resolved], EvalOverrides(data=("facts",), limit=2))
        assert target.label == label and target.fingerprint["model"] == str(folder / name)
    with pytest.raises(ConfigError, match=r"^there is no file 'models/none\.gguf'$"):
        load_config("models/none.gguf", command="infer")


def test_vllm_refuses_a_gguf_file_when_the_run_is_built(folder: Path):
    said = problems(folder, "model: {path: small.gguf}\nengine: {kind: vllm}\n")
    assert any("Convert it once with `memfactory data model " in problem for problem in said)
    with pytest.raises(ConfigError, match=r"model\.path: vLLM takes no weights from the GGUF file '.*small\.gguf'"):
        check_format(str(folder / "small.gguf"))
    check_format(str(folder))

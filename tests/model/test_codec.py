"""The tokenizer that measures texts for endpoints: where it lies, and the same tokens as the model's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memfactory.errors import ConfigError
from memfactory.files.assets import asset
from memfactory.model.codec import FileCodec
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from real_models import real_model

TEXTS = (
    "The capital of France is Paris.\n\nAlice  lives  in Rome. 12345 67",
    "naïve 東京 🙂👩‍👩‍👧 e\u0301 \u200b x",
    "a </think> <tool_call> <|im_end|>\n<|im_start|>assistant <think> <|endoftext|> b",
    "",
    "   ",
    "a\r\nb\tc\x00d",
    "I'LL we're 2025-11-29 3.14159",
)


@pytest.mark.parametrize("name", ["tiny", "smollm2", "qwen3-tokenizer"])
def test_a_text_has_the_same_tokens_for_an_endpoint_as_for_the_model(name: str) -> None:
    path = name if name == "tiny" else str(real_model(name))
    codec, chat = FileCodec(path), load_chat(ModelConfig(path=path))
    for text in TEXTS:
        assert codec.offsets(text) == chat.offsets(text)


def test_a_tokenizer_below_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    shutil.copy(asset("tiny") / "tokenizer.json", tmp_path / "models")
    expected = FileCodec("tiny").offsets("two words")
    for path in ("~/models", "~/models/tokenizer.json"):
        assert FileCodec(path).offsets("two words") == expected


@pytest.mark.parametrize("path", ["/gone/x", "./gone", "~/gone", "a/b/c", "gone.json"])
def test_a_tokenizer_that_is_not_there_is_no_hub_id(path: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no folder or file '{path}'"):
        FileCodec(path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
        FileCodec(str(tmp_path))

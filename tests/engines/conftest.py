"""What tests of engines over the small model share: it, and the texts of its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig


@pytest.fixture(scope="module")
def chat(small_model_path: Path) -> ChatFormat:
    return load_chat(ModelConfig(path=str(small_model_path)))


@pytest.fixture(scope="module")
def model(small_model_path: Path):
    return load_model(ModelConfig(path=str(small_model_path)), training=False)

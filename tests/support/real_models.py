"""Real models and tokenizers from the folder that MEMFACTORY_MODELS names; tests skip where one is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_model(name: str) -> Path:
    """The folder of the real model or tokenizer `name`, such as `smollm2` or `qwen3-tokenizer`; skips without it."""
    place = os.environ.get("MEMFACTORY_MODELS")
    if not place:
        pytest.skip(f"the real {name} is wanted: MEMFACTORY_MODELS names no folder that holds it")
    folder = Path(place) / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"the real {name} is wanted, and {folder} holds no tokenizer.json")
    return folder

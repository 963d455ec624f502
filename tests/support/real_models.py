"""Real models and tokenizers from the folder that MEMFACTORY_MODELS names, else from `models` in that of
MEMFACTORY_DATA; tests skip where one is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_model(name: str) -> Path:
    """The folder of the real model or tokenizer `name`, such as `smollm2` or `qwen3-tokenizer`; skips without it."""
    models, data = os.environ.get("MEMFACTORY_MODELS"), os.environ.get("MEMFACTORY_DATA")
    place = models or (data and f"{data}/models")
    if not place:
        pytest.skip(f"the real {name} is wanted: neither MEMFACTORY_MODELS nor MEMFACTORY_DATA names a folder")
    folder = Path(place) / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"the real {name} is wanted, and {folder} holds no tokenizer.json")
    return folder

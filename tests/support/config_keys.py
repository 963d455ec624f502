"""Every key that a config can have, by its dotted path."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from memfactory.config.describe import choices, options_of
from memfactory.config.schema import SECTIONS, DataConfig, EvalConfig
from memfactory.memory.options import MemoryConfig
from memfactory.model.options import ModelConfig
from memfactory.registry import DATASETS, TRAINERS


def config_keys() -> frozenset[str]:
    """Keys of every section that has fixed ones, trainers' and engines' options together; `train.lora` as well as
    `train.lora.rank`."""
    keys = {*SECTIONS, "train.name", "env.rewards", "env.steps", "data.train.name"}
    for section, model in _models():
        for option in options_of(model, f"{section}."):
            parts = option.key.split(".")
            keys |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return frozenset(keys)


def _models() -> Iterator[tuple[str, type[BaseModel]]]:
    yield from (("model", ModelConfig), ("eval", EvalConfig), ("memory", MemoryConfig), ("data", DataConfig))
    yield from (("train", TRAINERS.options(name)) for name in TRAINERS.names())
    yield from (("engine", choice.options) for choice in choices("engines") if choice.options is not None)
    yield from (("data.train", DATASETS.options(name)) for name in DATASETS.names())

"""Where weights lie on their way to vLLM: in memory, or in a folder where memory is too small."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch

from memfactory.engines.vllm import weight_transfer
from memfactory.engines.vllm.weight_transfer import PassingPlace, read_weights, write_weights
from memfactory.errors import EngineError
from small_policy import small_policy
from vllm_double import engine_over_the_double


class Filling:
    """Weights whose adapter has no room in `full`, as in a container's small /dev/shm."""

    has_adapter = True

    def __init__(self, weights, full: Path):
        self.weights, self.full = weights, full

    def whole(self):
        return self.weights.whole()

    def base(self):
        return self.weights.base()

    def write_adapter(self, folder: Path):
        self.weights.write_adapter(folder)
        if folder.is_relative_to(self.full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_memory(tmp_path: Path, monkeypatch):
    """A /dev/shm that is full, and a temporary folder."""
    places = [tmp_path / "shm", tmp_path / "tmp"]
    for place in places:
        place.mkdir()
    monkeypatch.setattr(weight_transfer, "SHARED_MEMORY", places[0])
    monkeypatch.setattr(tempfile, "tempdir", str(places[1]))
    return places


def test_adapters_pass_through_a_folder_where_memory_is_too_small(
    monkeypatch, small_model_path: Path, small_memory, caplog
):
    memory, temporary = small_memory
    engine, _ = engine_over_the_double(monkeypatch, small_model_path, rank=2)
    policy = small_policy(small_model_path, lora={"rank": 2, "target_modules": ["q_proj"]})
    for _ in range(2):
        engine.update_weights(Filling(policy.weights(), memory))
    assert all(Path(folder).parent == temporary for folder in engine._engine.folders)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"{memory} is too small for the weights, so they pass through {temporary}")
    engine.close()
    assert [*memory.iterdir(), *temporary.iterdir()] == []


def test_a_full_disk_is_an_error_that_names_the_option(monkeypatch, small_model_path: Path, small_memory, tmp_path):
    engine, _ = engine_over_the_double(monkeypatch, small_model_path, rank=2, weights_folder=str(small_memory[1]))
    policy = small_policy(small_model_path, lora={"rank": 2, "target_modules": ["q_proj"]})
    with pytest.raises(EngineError, match=r"No space left on device.*name a folder with room .*engine\.weights_folder"):
        engine.update_weights(Filling(policy.weights(), tmp_path))
    assert list(small_memory[1].iterdir()) == []
    engine, _ = engine_over_the_double(monkeypatch, small_model_path, rank=2, weights_folder=str(tmp_path / "absent"))
    with pytest.raises(EngineError, match="no folder for the weights can be made in"):
        engine.update_weights(policy.weights())


def test_whole_weights_pass_through_a_folder_where_memory_is_too_small(small_memory, tmp_path: Path):
    place = PassingPlace(None)

    def write(folder: Path):
        write_weights(
            folder if folder.is_relative_to(small_memory[1]) else folder / "absent", {"a": torch.ones(1)}.items()
        )

    with place.written(write) as folder:
        assert Path(folder).parent == small_memory[1] and list(dict(read_weights(Path(folder)))) == ["a"]

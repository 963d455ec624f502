"""Checkpoints are complete or not there, and random generators come back."""

import json
import random

import numpy
import pytest
import torch

from memfactory.errors import MemFactoryError
from memfactory.files.atomic import write_json
from memfactory.files.checkpoints import checkpoints, newest_intact
from memfactory.files.folders import atomic_folder
from memfactory.trainers.checkpoint import TrainState, load_state, save_checkpoint


def save(folder, step, keep=2):
    def weights(target):
        (target / "weights").write_text(f"weights of {step}")

    return save_checkpoint(
        folder, TrainState(step=step, cursor=step * 3), save_weights=weights, optimizer={"count": step}, keep=keep
    )


def test_a_checkpoint_gives_back_state_optimizer_and_every_random_generator(tmp_path):
    torch.manual_seed(7), random.seed(7), numpy.random.seed(7)
    saved = save(tmp_path, 4)
    drawn = (torch.rand(1).item(), random.random(), numpy.random.rand())
    state, optimizer = load_state(saved)
    assert state == TrainState(step=4, cursor=12)
    assert optimizer == {"count": 4}
    assert (torch.rand(1).item(), random.random(), numpy.random.rand()) == drawn


def test_only_the_newest_checkpoints_are_kept_in_the_order_of_their_steps(tmp_path):
    for step in (2, 9, 10):
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-9", "step-10"]


def test_a_save_that_fails_leaves_the_older_checkpoint_and_no_trace(tmp_path):
    save(tmp_path, 1)

    def broken(target):
        (target / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MemFactoryError, match="step-2 could not be written: No space left on device"):
        save_checkpoint(tmp_path, TrainState(step=2), save_weights=broken, optimizer={}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_disk_that_safetensors_finds_full_is_told_as_one(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(MemFactoryError, match=r"final could not be written: .*No space left"):
        with atomic_folder(tmp_path / "final"):
            raise SafetensorError('Error while serializing: Io(Os { code: 28, message: "No space left on device" })')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_the_marker_is_not_a_checkpoint(tmp_path):
    saved = save(tmp_path, 1)
    (saved / "COMPLETE").unlink()
    assert newest_intact(tmp_path) == (None, [f"{saved} cannot be used: it is not complete (it has no file COMPLETE)"])
    with pytest.raises(MemFactoryError, match="not a complete checkpoint"):
        load_state(saved)


def test_an_error_while_writing_leaves_the_old_folder_as_it_was(tmp_path):
    target = tmp_path / "final"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "a").write_text("second")
        raise RuntimeError
    assert (target / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "eval.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["eval.json"]

"""Folders that are complete or not there: written beside their place, flushed to disk, renamed, marked last.

A checkpoint holds the trained weights as `from_pretrained` or PEFT loads them, `optimizer.pt`, `random.pt` and
`state.json`. It does not know what a step of training is.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError

from memfactory.errors import MemFactoryError
from memfactory.files import write_json

MARKER = "COMPLETE"
PREFIX = "step-"


@dataclass(frozen=True)
class TrainState:
    """How far a run has come. `cursor` counts the training rows consumed over all epochs."""

    step: int = 0
    cursor: int = 0
    valid_groups: int = 0
    seconds: float = 0.0


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` only once it is complete; an error leaves no trace of it.

    Raises MemFactoryError when the disk refuses (full, read-only).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    working = target.with_name(f".{target.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        yield working
        for path in working.rglob("*"):
            if path.is_file():
                _flush(path)
        (working / MARKER).touch()
        _flush(working / MARKER)
        _flush(working)
        if target.exists():
            shutil.rmtree(target)
        os.rename(working, target)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        # safetensors tells of a full disk in an error of its own.
        shutil.rmtree(working, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else None
        raise MemFactoryError(f"{target} could not be written: {reason or error}") from error
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def save_checkpoint(
    folder: Path,
    state: TrainState,
    *,
    save_weights: Callable[[Path], None],
    optimizer: dict[str, object],
    keep: int,
) -> Path:
    """Write `folder`/step-N and delete all but the newest `keep` checkpoints.

    Those of later steps go first: the run went back behind them, and they are no part of its course any more.
    """
    target = folder / f"{PREFIX}{state.step}"
    with written_whole(target) as working:
        save_weights(working)
        torch.save(optimizer, working / "optimizer.pt")
        torch.save(random_states(), working / "random.pt")
        write_json(working / "state.json", asdict(state))
    found = checkpoints(folder)
    course = found[: found.index(target) + 1]
    for old in [*found[len(course) :], *course[:-keep]]:
        # Without its marker it is no checkpoint, should the rest outlive a kill.
        (old / MARKER).unlink()
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if (path / MARKER).is_file()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def load_state(checkpoint: Path) -> tuple[TrainState, dict[str, object]]:
    """How far the run had come at `checkpoint`, and its optimizer's state; the random generators are set back too.

    Raises MemFactoryError for a folder that is not a complete checkpoint.
    """
    if not (checkpoint / MARKER).is_file():
        raise MemFactoryError(f"{checkpoint} is not a complete checkpoint (it has no file {MARKER})")
    state = TrainState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    optimizer = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    set_random_states(torch.load(checkpoint / "random.pt", map_location="cpu", weights_only=False))
    return state, optimizer


def random_states() -> dict[str, object]:
    """The states of every global random generator."""
    states: dict[str, object] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, object]) -> None:
    """Set every global random generator back."""
    random.setstate(states["python"])  # type: ignore[arg-type]
    numpy.random.set_state(states["numpy"])  # type: ignore[arg-type]
    torch.set_rng_state(states["torch"])  # type: ignore[arg-type]
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])  # type: ignore[arg-type]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

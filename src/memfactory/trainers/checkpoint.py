"""A checkpoint: the trained weights as `from_pretrained` or PEFT loads them, the optimizer, the random generators.

Reading one unpickles numbers and tensors only.
"""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from memfactory.errors import MemFactoryError
from memfactory.files.atomic import write_json
from memfactory.files.checkpoints import checkpoints
from memfactory.files.folders import MARKER, atomic_folder


@dataclass(frozen=True)
class TrainState:
    """The progress of a run. `cursor` counts the training rows consumed over all epochs.

    `data` names the contents and order of the training rows; empty: unknown.
    """

    step: int = 0
    cursor: int = 0
    valid_groups: int = 0
    seconds: float = 0.0
    data: str = ""


def save_checkpoint(
    folder: Path,
    state: TrainState,
    *,
    save_weights: Callable[[Path], None],
    optimizer: dict[str, object],
    keep: int,
) -> Path:
    """Write `folder`/step-N and delete all but the newest `keep` checkpoints.

    Those of later steps are deleted first: the run was resumed from an earlier step and will write them again.
    """
    target = folder / f"step-{state.step}"
    with atomic_folder(target) as working:
        save_weights(working)
        save_tensors(optimizer, working / "optimizer.pt")
        write_json(working / "random.json", random_states())
        write_json(working / "state.json", asdict(state))
    every = checkpoints(folder)
    course = every[: every.index(target) + 1]
    for old in [*every[len(course) :], *course[:-keep]]:
        # Without its marker the folder is not a checkpoint, also if a kill leaves the rest.
        (old / MARKER).unlink(missing_ok=True)
        shutil.rmtree(old)
    return target


def read_state(checkpoint: Path) -> TrainState:
    """The progress of the run at `checkpoint`. Raises MemFactoryError if its state cannot be read."""
    if not (checkpoint / MARKER).is_file():
        raise MemFactoryError(f"{checkpoint} is not a complete checkpoint (it has no file {MARKER})")
    try:
        return TrainState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise MemFactoryError(f"{checkpoint / 'state.json'} cannot be used: {error}") from None


def load_state(checkpoint: Path) -> tuple[TrainState, dict[str, object]]:
    """The progress of the run at `checkpoint`, and its optimizer's state. Restores the random generators, too.

    The digests of its files are checked elsewhere, once and before anything is built. Raises MemFactoryError for a
    folder that is not a complete checkpoint.
    """
    state = read_state(checkpoint)
    try:
        optimizer = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        set_random_states(json.loads((checkpoint / "random.json").read_text(encoding="utf-8")))
    except Exception as error:
        # torch.load raises errors of many types for a damaged file.
        reason = str(error).strip().partition("\n")[0]
        raise MemFactoryError(f"{checkpoint} cannot be resumed: {type(error).__name__}: {reason}") from error
    return state, optimizer


class _ErrorKeepingFile(io.BufferedWriter):
    """A file for `torch.save` that remembers an OSError, since torch raises another error in its place."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.error: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def save_tensors(value: object, path: Path) -> None:
    """Write `value`, of numbers and tensors, for `torch.load(..., weights_only=True)`. Raises OSError."""
    with _ErrorKeepingFile(path) as file:
        try:
            torch.save(value, file)
        finally:
            # torch's own error for a full disk names neither the file nor the reason.
            if file.error is not None:
                raise file.error from None


def random_states() -> dict[str, object]:
    """The states of every global random generator, as plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    states: dict[str, object] = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = [_text(state) for state in torch.cuda.get_rng_state_all()]
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore the state of every global random generator."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(_state(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_state(text) for text in states["cuda"]])


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _state(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

"""How weights pass to a vLLM: through files in a folder that lies in memory and is gone once they are read."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memfactory.errors import ConfigError, EngineError
from memfactory.model.adapters import SPLIT, is_tied
from memfactory.model.loading import load_architecture, load_model
from memfactory.model.options import ModelConfig

log = logging.getLogger("memfactory")
SHARED_MEMORY = Path("/dev/shm")
# Small beside a model, so that a second copy of it never stands in this process's memory.
FILE_BYTES = 2**30


@dataclass(frozen=True)
class StoredWeights:
    """The weights of `model` as they are stored, its adapter merged in: a vLLM's weights without a training."""

    model: ModelConfig
    version: int = 0
    has_adapter: bool = False

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Raises ConfigError if the adapter splits a weight that vLLM holds once."""
        model = load_model(self.model.model_copy(update={"device": "cpu"}), training=False)
        tied = load_architecture(self.model).get_text_config().tie_word_embeddings
        if tied and not is_tied(model):
            raise ConfigError(f"{SPLIT}. Write engine.kind: hf")
        yield from model.named_parameters()

    def base(self) -> Iterator[tuple[str, Tensor]]:
        return self.whole()

    def write_adapter(self, folder: Path) -> None:
        raise ValueError("no adapter is in training")


class NoRoom(EngineError):
    """Weights cannot be written to a folder."""


class PassingPlace:
    """The place of the folders through which weights pass: `parent`, or memory until it proves too small.

    A container's /dev/shm often has 64 MB, and an adapter of rank 16 for a 4B model has 132 MB. The system's temporary
    folder is then used from there on, with one warning.
    """

    def __init__(self, parent: str | None) -> None:
        self._parent = parent
        self._in_memory = parent is None and SHARED_MEMORY.is_dir()

    def written(self, write: Callable[[Path], None]) -> tempfile.TemporaryDirectory[str]:
        """A new folder that `write` has filled; called again in another place if memory is too small.

        Raises EngineError if it cannot be written.
        """
        if self._in_memory:
            try:
                return _filled(str(SHARED_MEMORY), write)
            except NoRoom as error:
                self._in_memory = False
                self._parent = tempfile.gettempdir()
                log.warning(
                    "%s is too small for the weights, so they pass through %s from here on (%s)",
                    *(SHARED_MEMORY, self._parent, error.__cause__),
                )
        return _filled(self._parent, write)


def _filled(parent: str | None, write: Callable[[Path], None]) -> tempfile.TemporaryDirectory[str]:
    folder = passing_folder(parent)
    try:
        write(Path(folder.name))
    except (OSError, SafetensorError) as error:
        folder.cleanup()
        raise _no_room(Path(folder.name), error) from error
    except BaseException:
        folder.cleanup()
        raise
    return folder


def _no_room(folder: Path, error: Exception) -> NoRoom:
    return NoRoom(
        f"the weights cannot be written to {folder} ({error}); name a folder with room for them that vLLM can read in "
        "engine.weights_folder"
    )


def passing_folder(parent: str | None = None) -> tempfile.TemporaryDirectory[str]:
    """A folder for weights in `parent`; None: in the system's temporary folder. Raises EngineError."""
    try:
        return tempfile.TemporaryDirectory(prefix="memfactory-", dir=parent)
    except OSError as error:
        place = parent or tempfile.gettempdir()
        raise NoRoom(f"no folder for the weights can be made in {place}: {error}") from error


def write_weights(folder: Path, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors by name as safetensors files of about 1 GiB. Raises EngineError if the folder has no room."""
    held: dict[str, Tensor] = {}
    files, size = 0, 0
    for name, value in weights:
        held[name] = value.detach().cpu().contiguous()
        size += value.nbytes
        if size >= FILE_BYTES:
            _write(folder / f"{files:05}.safetensors", held)
            held, files, size = {}, files + 1, 0
    if held:
        _write(folder / f"{files:05}.safetensors", held)


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors that `write_weights` wrote, one by one."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a mapping
                yield name, file.get_tensor(name)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path)
    except (OSError, SafetensorError) as error:
        raise _no_room(path.parent, error) from error

"""How weights pass to a vLLM: through files in a folder that lies in memory and is gone once they are read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memfactory.errors import ConfigError, EngineError
from memfactory.model.adapters import SPLIT, is_tied
from memfactory.model.loading import load_architecture, load_model
from memfactory.model.options import ModelConfig

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


def passing_folder(parent: str | None = None) -> tempfile.TemporaryDirectory[str]:
    """A folder for weights in `parent`; None: in memory if the system allows it. Raises EngineError."""
    place = parent or (str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None)
    try:
        return tempfile.TemporaryDirectory(prefix="memfactory-", dir=place)
    except OSError as error:
        raise EngineError(f"no folder for the weights can be made in {place}: {error}") from error


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
        raise EngineError(
            f"the weights cannot be written to {path.parent} ({error}); name a folder with room for the whole model "
            "that the server can read in engine.weights_folder"
        ) from error

"""The places of tokens in a text, from a tokenizer file alone: for runs whose model is behind an API. No torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from memfactory.errors import ConfigError
from memfactory.files.assets import asset
from memfactory.files.places import expanded
from memfactory.model.gguf_file import gguf_problem, is_gguf
from memfactory.model.hub import hub_away, looks_local

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class FileCodec:
    """A `Codec` on a tokenizer.json: `tiny`, a model folder, a file (also a GGUF file), or a hub id whose file is
    cached or reachable."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        file = _file(path)
        try:
            if is_gguf(file):
                self._tokenizer = _inside(file)
            else:
                self._tokenizer = Tokenizer.from_file(str(file) if file.is_file() else _from_hub(path))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the tokenizer {path!r} that measures the chunks cannot be loaded ({error}); name a local folder, a "
                "tokenizer.json, or `tiny` for rough lengths"
            ) from error
        # A file can set truncation or padding for its model; texts are measured whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Many questions are asked about one text.
        self._remembered = lru_cache(maxsize=16)(self._offsets)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open character span of every token of `text`, in order."""
        return [(start, end) for start, end in self._remembered(text).tolist()]

    def _offsets(self, text: str) -> numpy.ndarray:
        """The spans, [tokens, 2]: an array takes a 16th of the memory of tuples."""
        spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return numpy.array(spans, numpy.int32).reshape(-1, 2)


def _file(path: str) -> Path:
    """The tokenizer's file; one that does not exist for a hub id. Raises ConfigError for a place here without one."""
    folder = asset("tiny") if path == "tiny" else expanded(path)
    if path == "tiny" and not folder.is_dir():
        raise ConfigError("the model 'tiny' is not in this installation of memfactory")
    if folder.is_dir():
        if not (folder / "tokenizer.json").is_file():
            raise ConfigError(f"the tokenizer that measures the chunks: the folder {path!r} holds no tokenizer.json")
        return folder / "tokenizer.json"
    if not (folder.is_file() or is_gguf(folder)) and (looks_local(path) or folder.suffix == ".json"):
        raise ConfigError(f"the tokenizer that measures the chunks: there is no folder or file {path!r}")
    return folder


def _from_hub(name: str) -> str:
    """The tokenizer file of a model on the hub, in the hub's cache. Raises OSError if the hub is away and lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    away = hub_away()
    try:
        path: str = hf_hub_download(name, "tokenizer.json", local_files_only=away is not None)
    except LocalEntryNotFoundError as error:
        raise OSError(f"its cache does not have it, and the hub cannot be reached: {away or error}") from error
    return path


def _inside(file: Path) -> Tokenizer:
    """The tokenizer in a GGUF file, which only transformers can read."""
    from memfactory.model.gguf_model import gguf_tokenizer

    problem = gguf_problem(file)
    if problem is not None:
        raise ConfigError(f"the tokenizer that measures the chunks: {problem}")
    tokenizer: Tokenizer = gguf_tokenizer(str(file)).backend_tokenizer
    return tokenizer

"""Models in GGUF files, by way of transformers: their weights are unpacked, and plain models come out."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from memfactory.model.gguf_file import gguf_header

_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def gguf_config(path: str) -> PretrainedConfig:
    """The description of the model in the GGUF file at `path`."""
    facts = Path(path).stat()
    return deepcopy(_config(path, facts.st_size, facts.st_mtime_ns))


def gguf_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer in the GGUF file at `path`, with its chat template."""
    with _alone(path) as (folder, name):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    tokenizer.name_or_path = path
    return tokenizer


def gguf_model(path: str, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in the GGUF file at `path`, loaded with `options` of transformers, and the report on its weights.

    The weights have the type that `options` name. Nothing about the model is quantized any more: it trains and is
    saved as any other.
    """
    # Newer versions would keep the weights packed on a GPU.
    packed = getattr(transformers, "GgufConfig", None)
    unpack = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    with _alone(path) as (folder, name):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            config=gguf_config(path),
            local_files_only=True,
            output_loading_info=True,
            **unpack,
            **options,
        )
    # An adapter that is trained on the model names it by this.
    model.name_or_path = model.config.name_or_path = path
    return model, report


def gguf_end_ids(path: str) -> list[int]:
    """The ids that end a reply, by the GGUF file at `path`."""
    values = gguf_header(Path(path)).values
    return [number for name in _ENDS if isinstance(number := values.get(name), int)]


def unread_rotation(path: str, config: PretrainedConfig) -> str | None:
    """A warning if the model stretches its rotary embedding in a way that transformers did not read from the file."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type", "default") != "default" or not gguf_header(Path(path)).scales_rotation:
        return None
    return (
        "the GGUF file scales the rotary embedding, which transformers does not read from it. The results differ from "
        "those of the original model, most of all on long texts; use its folder with config.json instead"
    )


@lru_cache(maxsize=4)
def _config(path: str, size: int, changed: int) -> PretrainedConfig:
    """The description in the file at `path`, as it was at its size and time of change: it takes seconds to read."""
    with _alone(path) as (folder, name):
        config = AutoConfig.from_pretrained(folder, gguf_file=name, local_files_only=True)
    config.name_or_path = path
    return config


@contextmanager
def _alone(path: str) -> Iterator[tuple[str, str]]:
    """A folder and the name of the GGUF file in it.

    It holds nothing else: transformers would mix the file with the config, tokenizer or adapter that lies beside it.
    """
    # Its progress bar is drawn past transformers' switch for progress bars.
    with (
        tempfile.TemporaryDirectory(prefix="memfactory-gguf-") as folder,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        link = Path(folder) / "model.gguf"
        link.symlink_to(Path(path).resolve())
        yield folder, link.name

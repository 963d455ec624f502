"""A fingerprint of the weights of a model config, by the contents of its files. No torch."""

from __future__ import annotations

from pathlib import Path

from memfactory.files.assets import asset
from memfactory.files.atomic import sha256_of
from memfactory.files.places import expanded
from memfactory.model.options import ModelConfig

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model")
READ_WHOLE = 256 * 2**20
"""Files up to this many bytes count by their contents, larger ones by size and time of change."""


def weights_fingerprint(model: ModelConfig) -> dict[str, str]:
    """Each file of a local model, its adapter and its chat template with a digest; empty for a model on the hub."""
    digests: dict[str, str] = {}
    for place in (model.path, model.adapter):
        local = None if place is None else _place(place)
        if local is not None and local.is_file():
            digests[str(place)] = file_digest(local)
        elif local is not None:
            for path in sorted({path for pattern in WEIGHT_FILES for path in local.glob(pattern)}):
                digests[f"{place}/{path.name}"] = file_digest(path)
    template = None if model.chat_template is None else expanded(model.chat_template)
    if template is not None and template.is_file():
        digests["chat_template"] = file_digest(template)
    return digests


def file_digest(path: Path) -> str:
    """A name for the contents of a file."""
    facts = path.stat()
    if facts.st_size > READ_WHOLE:
        return f"{facts.st_size} bytes, changed {facts.st_mtime_ns}"
    return sha256_of(path)


def _place(place: str) -> Path | None:
    """The folder or the GGUF file of a local model; None for a model on the hub."""
    if place == "tiny":
        return asset("tiny")
    path = expanded(place)
    return path if path.is_dir() or path.is_file() else None

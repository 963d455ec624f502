"""A fingerprint of the weights of a model config, by the contents of its files. No torch."""

from __future__ import annotations

from pathlib import Path

from memfactory.files.assets import asset
from memfactory.files.atomic import sha256_of
from memfactory.model.options import ModelConfig

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model")
READ_WHOLE = 256 * 2**20
"""Files up to this many bytes count by their contents, larger ones by size and time of change."""


def weights_fingerprint(model: ModelConfig) -> dict[str, str]:
    """Each file of a local model, its adapter and its chat template with a digest; empty for a model on the hub."""
    digests: dict[str, str] = {}
    for place in (model.path, model.adapter):
        folder = None if place is None else _folder(place)
        if folder is not None:
            for path in sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)}):
                digests[f"{place}/{path.name}"] = file_digest(path)
    template = None if model.chat_template is None else Path(model.chat_template).expanduser()
    if template is not None and template.is_file():
        digests["chat_template"] = file_digest(template)
    return digests


def file_digest(path: Path) -> str:
    """A name for the contents of a file."""
    facts = path.stat()
    if facts.st_size > READ_WHOLE:
        return f"{facts.st_size} bytes, changed {facts.st_mtime_ns}"
    return sha256_of(path)


def _folder(place: str) -> Path | None:
    if place == "tiny":
        return asset("tiny")
    folder = Path(place).expanduser()
    return folder if folder.is_dir() else None

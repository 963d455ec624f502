"""The header of a GGUF file, and the reasons why a file is unusable. No torch, and no weights are read."""

from __future__ import annotations

import importlib.util
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

from memfactory.errors import nearest

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
_PART = re.compile(r"-\d{5}-of-(\d{5})$")
# The formats of single values by their type; a text is of type 8 and a list of type 9.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufHeader:
    """The part of a GGUF file before its weights.

    `values` are its single values by name; lists such as the vocabulary are left out. `tensors` maps the names of the
    weights to their shapes, with the last dimension first, as the file has them. `size` is the number of bytes that
    the whole file must have.
    """

    values: Mapping[str, object]
    tensors: Mapping[str, tuple[int, ...]]
    size: int

    @property
    def architecture(self) -> str:
        """The name of the architecture, such as llama; empty if the file names none."""
        return str(self.values.get("general.architecture", ""))

    @property
    def scales_rotation(self) -> bool:
        """Whether the model stretches its rotary embedding for texts longer than those of its first training."""
        scaling = self.values.get(f"{self.architecture}.rope.scaling.type", "none")
        return scaling != "none" or any(name.startswith("rope_f") for name in self.tensors)


def is_gguf(path: str | Path) -> bool:
    """Whether `path` is meant as a GGUF file by its name, or is one by its first bytes."""
    try:
        file = Path(path).expanduser()
        if file.suffix.lower() == SUFFIX:
            return not file.is_dir()
        with open(file, "rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError, RuntimeError):
        # No file can have the name, or there is no such user.
        return False


def gguf_problem(file: Path) -> str | None:
    """Why no model can be read from the GGUF file `file`; None if nothing speaks against it.

    Whether transformers knows the architecture is not checked.
    """
    if not file.exists():
        near = _nearest_beside(file)
        return f"there is no file {str(file)!r}" + ("" if near is None else f"; did you mean {near!r}?")
    if (missing := gguf_missing(repr(str(file)))) is not None:
        return missing
    try:
        header = gguf_header(file)
    except OSError as error:
        return f"{str(file)!r} cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"{str(file)!r} {error}"
    if (part := _PART.search(file.stem)) is not None and int(part[1]) > 1:
        return (
            f"{str(file)!r} is one of {int(part[1])} parts of a model; join them with llama.cpp's "
            "`llama-gguf-split --merge`"
        )
    if not header.architecture:
        return f"{str(file)!r} names no architecture (general.architecture)"
    return None


def _nearest_beside(file: Path) -> str | None:
    """The GGUF file in the folder of `file` with the most similar name."""
    try:
        beside = {path.name: path for path in file.parent.glob("*") if path.suffix.lower() == SUFFIX}
    except OSError:
        return None
    name = nearest(file.name, beside)
    return None if name is None else str(beside[name])


def gguf_missing(user: str) -> str | None:
    """How to install the package `gguf`, which `user` needs; None if it is here."""
    if importlib.util.find_spec("gguf") is not None:
        return None
    return f"{user} needs an extra that is not installed: pip install 'memfactory[gguf]'"


def gguf_header(file: Path) -> GgufHeader:
    """The header of a GGUF file that has no `gguf_problem`."""
    facts = file.stat()
    return _header(str(file), facts.st_size, facts.st_mtime_ns)


def gguf_instead(folder: Path) -> str | None:
    """How to name a GGUF file of a folder that is no model folder itself; None if it holds none."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() == SUFFIX and path.is_file())
    if not files:
        return None
    names = ", ".join(file.name for file in files)
    return f"it has no config.json, but GGUF files ({names}); name one of them, such as {str(files[0])!r}"


def against_vllm(path: str) -> str:
    """Why vLLM cannot run the model in the GGUF file at `path`, and the way out."""
    # It keeps the weights of such a file packed, and a sync brings plain ones.
    return (
        f"vLLM takes no weights from the GGUF file {path!r} here. Convert it once with `memfactory data model {path} "
        "--output DIR` and name DIR, or write engine.kind: hf"
    )


@lru_cache(maxsize=8)
def _header(path: str, size: int, changed: int) -> GgufHeader:
    """The header of the file at `path`, as it was at its size and time of change. Raises ValueError with a reason."""
    if size < 24:
        raise ValueError("is no GGUF file: it is shorter than the header of one")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:19] == b"version https://git":
            raise ValueError("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
        if content[:4] != MAGIC:
            raise ValueError(f"is no GGUF file: it begins with {content[:4]!r}, not {MAGIC!r}")
        reader = _Reader(content)
        (version,) = reader.numbers("I")
        if version not in VERSIONS:
            raise ValueError(f"is a GGUF file of version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
        try:
            return _read(reader)
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError("is damaged or was cut short: its header does not end") from error
    raise AssertionError(f"the header of {path} was neither read nor refused")


def _read(reader: _Reader) -> GgufHeader:
    count, values_count = reader.numbers("QQ")
    values: dict[str, object] = {}
    for _ in range(values_count):
        name = reader.text()
        value = reader.value(reader.numbers("I")[0])
        if value is not None:
            values[name] = value
    tensors: dict[str, tuple[int, ...]] = {}
    end = 0
    for _ in range(count):
        name = reader.text()
        (dimensions,) = reader.numbers("I")
        tensors[name] = reader.numbers(f"{dimensions}Q")
        kind, offset = reader.numbers("IQ")
        end = max(end, offset + _bytes(name, kind, prod(tensors[name])))
    alignment = values.get("general.alignment", _ALIGNMENT)
    step = alignment if isinstance(alignment, int) and alignment > 0 else _ALIGNMENT
    header = GgufHeader(values, tensors, -(-reader.place // step) * step + end)
    if reader.size < header.size:
        raise ValueError(f"was cut short: it has {reader.size:,} bytes, and its weights end at {header.size:,}")
    return header


def _bytes(tensor: str, kind: int, elements: int) -> int:
    """The bytes of a tensor of the type `kind`."""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(known): size for known, size in GGML_QUANT_SIZES.items()}
    if kind not in sizes:
        raise ValueError(f"has the tensor {tensor!r} in the type {kind}, which this version of gguf does not know")
    block, width = sizes[kind]
    return elements // block * width


class _Reader:
    """Takes one value after another from the bytes of a file, from the version on. It fails at the end of the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self.place, self.size = content, 4, len(content)

    def numbers(self, form: str) -> tuple[int, ...]:
        numbers = struct.unpack_from(f"<{form}", self._content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return numbers

    def text(self) -> str:
        (length,) = self.numbers("Q")
        if self.place + length > self.size:
            raise IndexError(length)
        self.place += length
        return self._content[self.place - length : self.place].decode()

    def value(self, kind: int) -> object:
        """A single value; None for a list, which is skipped."""
        if kind in _FORMATS:
            return self.numbers(_FORMATS[kind])[0]
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise IndexError(kind)
        inner, count = self.numbers("IQ")
        if inner in _FORMATS:
            self.place += count * struct.calcsize(f"<{_FORMATS[inner]}")
            return None
        for _ in range(count):
            if inner == _TEXT:
                self.place += 8 + struct.unpack_from("<Q", self._content, self.place)[0]
            else:
                self.value(inner)
        return None

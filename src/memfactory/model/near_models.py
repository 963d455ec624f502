"""The hint for a model that is not there: the nearest model, the command that makes it, or the forms of a name. No
torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from memfactory.errors import nearest
from memfactory.files.places import expanded
from memfactory.model.gguf_file import SUFFIX
from memfactory.model.packaged import KNOWN

TINY = "tiny"
FORMS = f"a model is a folder, a {SUFFIX} file, a hub id such as org/name, or `{TINY}`"
_FORMS_BEHIND = f"A{FORMS[1:]}"
_USUAL_FOLDER = "models"
"""The folder in which a bare name is looked for too: the docs and configs put models there."""


def is_model(place: Path) -> bool:
    """Whether `place` looks like a model folder, an adapter or a GGUF file."""
    names = ("config.json", "adapter_config.json")
    return any((place / name).is_file() for name in names) or (place.suffix.lower() == SUFFIX and place.is_file())


def is_tokenizer(place: Path) -> bool:
    """Whether `place` is a tokenizer without a model: a folder with a tokenizer.json, or such a file."""
    if place.suffix == ".json" and place.is_file():
        return True
    return (place / "tokenizer.json").is_file() and not is_model(place)


def is_adapter(place: Path) -> bool:
    """Whether `place` looks like an adapter's folder."""
    return (place / "adapter_config.json").is_file()


def model_hint(path: str, base_dir: Path = Path()) -> str:
    """A sentence for a model `path` that names nothing, in the working directory or in `base_dir`."""
    name = _bare(path)
    if name not in KNOWN and (near := nearest_place(path, base_dir, is_model)) is not None:
        return f"did you mean {near!r}? {_FORMS_BEHIND}"
    titles = {other.lower(): known for known, model in KNOWN.items() for other in (known, model.title)}
    title = nearest(name, titles)
    if title is not None:
        known = titles[title]
        output = path if name == known and "/" in path else f"{_USUAL_FOLDER}/{known}"
        makes = f"`memfactory data model {known} --output {output}` makes the folder of {KNOWN[known].title}"
        return f"{makes}. {_FORMS_BEHIND}"
    is_tiny = "/" not in path and nearest(name, (TINY,)) is not None
    return f"did you mean {TINY!r}? {_FORMS_BEHIND}" if is_tiny else FORMS


def nearest_place(path: str, base_dir: Path, fits: Callable[[Path], bool]) -> str | None:
    """The existing path most similar to `path`, in the working directory or in `base_dir`, for which `fits` holds."""
    for base in dict.fromkeys((Path(), base_dir)):
        try:
            place = _nearest(base, expanded(path), fits)
        except (OSError, ValueError, RuntimeError):
            # A folder that cannot be read, a name that no file can have, or no such user.
            continue
        if place is not None:
            return str(place)
    return None


def _nearest(base: Path, path: Path, fits: Callable[[Path], bool]) -> Path | None:
    parts = path.parts
    here = Path(path.anchor) if path.is_absolute() else base
    for part in parts[1 if path.is_absolute() else 0 : -1]:
        inner = here / part
        if not inner.is_dir():
            named = _named(child for child in here.iterdir() if child.is_dir())
            near = nearest(part.lower(), named)
            if near is None:
                return None
            inner = named[near]
        here = inner
    folders = [here, base / _USUAL_FOLDER] if len(parts) == 1 else [here]
    named = _named(child for folder in folders for child in _children(folder) if fits(child))
    near = nearest(_bare(path.name), named)
    return None if near is None else named[near]


def _children(folder: Path) -> Iterator[Path]:
    yield from folder.iterdir() if folder.is_dir() else ()


def _named(places: Iterable[Path]) -> dict[str, Path]:
    """`places` by their names in small letters, without the ending of a GGUF file."""
    return {_bare(place.name): place for place in sorted(places, reverse=True)}


def _bare(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2].lower()
    return name.removesuffix(SUFFIX)

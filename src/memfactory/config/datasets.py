"""The forms in which a config writes a dataset: a registered name, the path of a file, a hub id, or a mapping with
options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memfactory.config.parts import is_dir, is_file
from memfactory.errors import nearest
from memfactory.files.places import expanded
from memfactory.registry import DATASETS

FILE_SUFFIXES = (".json", ".jsonl", ".parquet")


def locate(text: str, base_dir: Path) -> Path | None:
    """The file that `text` names, relative to the working directory first and then to the config; None if there is
    none."""
    if "\0" in text:
        return None
    places = (expanded(text) if text.startswith("~/") else Path(text), base_dir / text)
    return next((path for path in places if is_file(path)), None)


def anchored(text: str, base_dir: Path) -> str:
    """`text`, made absolute if only the config's folder has such a file or folder, so that it stays valid elsewhere."""
    if "\0" in text or text.startswith("~/") or text == "tiny":
        return text
    beside = base_dir / text
    there = is_file(beside) or is_dir(beside)
    return str(beside.resolve()) if there and not (is_file(Path(text)) or is_dir(Path(text))) else text


def dataset_values(spec: object, base_dir: Path) -> dict[str, Any]:
    """`spec` as a mapping of `name` (a registered dataset) and its options, with the path of a file beside the config
    made absolute.

    Raises ValueError with a sentence when `spec` names nothing that can be a dataset.
    """
    values = _named(spec, base_dir)
    if isinstance(values.get("path"), str):
        values["path"] = anchored(values["path"], base_dir)
    return values


def _named(spec: object, base_dir: Path) -> dict[str, Any]:
    if isinstance(spec, str):
        return _from_text(spec, base_dir)
    if not isinstance(spec, Mapping):
        raise ValueError(
            "expected a dataset: a registered name, a file's path, a hub id such as org/name, or a mapping"
        )
    values = dict(spec)
    name = values.pop("name", None)
    if name is None:
        name = "file" if "path" in values else "hub" if "id" in values else None
    if not isinstance(name, str):
        raise ValueError("a dataset needs `name` (a registered one), `path` (a file) or `id` (on the hub)")
    return {**({"name": name} if name in DATASETS.names() else _from_text(name, base_dir)), **values}


def _from_text(text: str, base_dir: Path) -> dict[str, Any]:
    if text in DATASETS.names():
        return {"name": text}
    if text.endswith(FILE_SUFFIXES) or locate(text, base_dir) or text.startswith(("/", "./", "../", "~/")):
        return {"name": "file", "path": text}
    folder, slash, rest = text.partition("/")
    if slash:
        if folder and rest and "/" not in rest and not is_dir(Path(folder)) and not is_dir(base_dir / folder):
            return {"name": "hub", "id": text}
        return {"name": "file", "path": text}
    for suffix in FILE_SUFFIXES:
        if locate(f"data/{text}{suffix}", base_dir):
            return {"name": "file", "path": f"data/{text}{suffix}"}
    near = nearest(text, DATASETS.names())
    raise ValueError(
        f"no dataset is called {text!r}{f'; did you mean {near!r}?' if near else '.'} There are: "
        f"{', '.join(DATASETS.names())}. There is no file data/{text}.json (.jsonl, .parquet) either; another file is "
        "named by its path, a dataset on the hub as org/name"
    )


def file_stem(title: str) -> str:
    """A file name for the dataset `title`: letters, digits and . + - _, and a - for other characters."""
    return re.sub(r"[^\w.+-]+", "-", title)


def dataset_title(values: Mapping[str, Any]) -> str:
    """The name that a dataset is reported under if the config gives none: a file's stem, the last part of a hub id."""
    if isinstance(values.get("path"), str):
        return Path(values["path"]).stem
    if isinstance(values.get("id"), str):
        return str(values["id"]).rpartition("/")[2]
    return str(values["name"])

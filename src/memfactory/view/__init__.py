"""`memfactory view`: one self-contained HTML file of a run, an evaluation or answers of `infer`, without a server."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from memfactory.errors import ConfigError
from memfactory.files.atomic import write_text
from memfactory.text import writable
from memfactory.view.episodes import Page
from memfactory.view.outputs import answers_page, evaluation_page
from memfactory.view.runs import run_page

PLACE = "/*DATA*/"
STEPS_SHOWN = 60


def write_view(place: Path, output: Path | None = None, *, steps: int = STEPS_SHOWN) -> Path:
    """Write the page of what lies at `place` and return where it is (default: view.html in a folder, or FILE.html).

    `place` is a run folder, the output folder of `eval`, or a .jsonl file that `infer` or `eval` wrote. At most `steps`
    optimizer steps are shown with their transcripts, evenly spread from the first to the last, and of everything else
    so much that the file stays small; the page says what was left out. Links that lead out of a folder are not
    followed. Raises ConfigError for anything else and for an output that cannot be written, DataError for files that
    no command writes.
    """
    page = _page(place, steps)
    target = output or (place / "view.html" if place.is_dir() else place.with_suffix(".html"))
    template = resources.files(__package__ or "memfactory.view").joinpath("page.html").read_text(encoding="utf-8")
    # "<" is escaped so that no text of a transcript can end the script that holds it.
    text = template.replace(PLACE, json.dumps(page.to_json(), ensure_ascii=False).replace("<", "\\u003c"))
    try:
        write_text(target, writable(text))
    except OSError as error:
        what, hint = (f"--output {target}", "") if output else (str(target), "; name another place with --output FILE")
        raise ConfigError(f"{what} cannot be written: {error.strerror or error}{hint}") from None
    return target


def _page(place: Path, steps: int) -> Page:
    if place.is_file():
        return answers_page(place)
    if (place / "results.json").is_file():
        return evaluation_page(place)
    if (place / "transcripts").is_dir() or (place / "metrics.jsonl").is_file():
        return run_page(place, steps)
    if not place.exists():
        raise ConfigError(f"there is no {place}")
    raise ConfigError(
        f"{place} is not a run folder (it has neither transcripts/ nor metrics.jsonl), no output of eval (it has no "
        "results.json) and no file that infer wrote (.jsonl)"
    )

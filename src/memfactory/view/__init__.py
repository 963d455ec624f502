"""`memfactory view`: one self-contained HTML file of a run's curves, evaluations and transcripts, without a server."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from memfactory.errors import ConfigError
from memfactory.evaluate.results import EvalHistory
from memfactory.figures import draw_run
from memfactory.files import write_whole
from memfactory.transcripts import Transcript, read_transcripts

PLACE = "/*DATA*/"
STEPS_SHOWN = 60


def write_view(run: Path, output: Path | None = None, *, steps: int = STEPS_SHOWN) -> Path:
    """Write the page of the run in `run` (default: view.html in it) and return where it is.

    At most `steps` optimizer steps are shown with their transcripts, evenly spread from the first to the last, so that
    the file stays small. Raises ConfigError for a folder that is no run, DataError for files that no run writes.
    """
    transcripts = sorted((run / "transcripts").glob("step-*.jsonl"))
    if not transcripts and not (run / "metrics.jsonl").exists():
        raise ConfigError(f"{run} is not a run folder: it has neither transcripts/ nor metrics.jsonl")
    page = {
        "name": run.resolve().name,
        "figures": {path.stem: _picture(path) for path in draw_run(run)},
        "evaluations": _evaluations(EvalHistory.load(run / "eval.json")),
        "config": _text(run / "config.yaml"),
        "steps": [_step(list(read_transcripts(path))) for path in spread(transcripts, steps)],
    }
    target = output or run / "view.html"
    template = resources.files(__package__ or "memfactory.view").joinpath("page.html").read_text(encoding="utf-8")
    # "<" is escaped so that no text of a transcript can end the script that holds it.
    text = template.replace(PLACE, json.dumps(page, ensure_ascii=False).replace("<", "\\u003c"))
    try:
        write_whole(target, text)
    except OSError as error:
        raise ConfigError(f"--output {target} cannot be written: {error.strerror or error}") from None
    return target


def spread(items: Sequence[Path], count: int) -> list[Path]:
    """At most `count` (2 or more) of `items`, evenly spread from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def _picture(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _evaluations(history: EvalHistory) -> list[Mapping[str, object]]:
    return [
        {
            "step": step,
            "dataset": name,
            "metric": metric,
            "mean": found.mean,
            "standard_error": found.standard_error,
            "n": found.n,
            "k": found.k,
        }
        for step, results in history.evaluations.items()
        for name, result in results.items()
        for metric, found in result.metrics.items()
    ]


def _step(rows: Sequence[Transcript]) -> Mapping[str, object]:
    """The trajectories of one optimizer step, grouped by task."""
    groups: dict[str, list[object]] = {}
    for row in rows:
        groups.setdefault(row.task_id, []).append(row.to_json())
    return {"step": rows[0].step if rows else None, "groups": list(groups.values())}

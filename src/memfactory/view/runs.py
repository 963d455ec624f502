"""The page of a training run: curves, evaluations, and the transcripts of its sampled groups."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from memfactory.errors import DataError
from memfactory.evaluation.results import EvalHistory
from memfactory.figures import MOST_LINES, pictures
from memfactory.files.json_lines import count_lines
from memfactory.transcripts import Transcript, read_transcripts
from memfactory.view.episodes import Bank, ShownEpisode, format_score, format_scores, group_by_task, spread
from memfactory.view.links import is_inside, link_note
from memfactory.view.page import EvaluationRow, Page, Section

Banks = Mapping[tuple[str, int], Mapping[str, object] | None]
"""The recorded bank of each episode by task id and index."""


def run_page(run: Path, steps: int) -> Page:
    """The page of the run in `run`, with the transcripts of at most `steps` optimizer steps."""
    notes: list[str] = []
    files = {name: _file(run, name, notes) for name in ("transcripts", "metrics.jsonl", "eval.json", "config.yaml")}
    missing = run / "missing"
    history = EvalHistory.load(files["eval.json"] or missing)
    metrics, config = files["metrics.jsonl"], files["config.yaml"]
    transcripts = sorted((files["transcripts"] or missing).glob("step-*.jsonl"))
    transcripts = [path for path in transcripts if _file(run, f"transcripts/{path.name}", notes)]
    shown = spread(transcripts, steps)
    if len(shown) < len(transcripts):
        notes.append(f"The page shows transcripts of {len(shown)} of {len(transcripts)} steps, evenly spread.")
    if metrics is not None and (lines := count_lines(metrics)) > MOST_LINES:
        notes.append(f"The curves show {MOST_LINES:,} of {lines:,} lines of metrics, evenly spread.")
    images = pictures(metrics or missing, history)
    return Page(
        name=run.resolve().name,
        sections_are="Step",
        sections=[_section(path) for path in shown],
        notes=notes,
        figures={name: "data:image/png;base64," + base64.b64encode(png).decode() for name, png in images.items()},
        evaluations=list(_evaluations(history)),
        subjects_are="step",
        config="" if config is None else config.read_text(encoding="utf-8", errors="replace"),
    )


def _file(run: Path, name: str, notes: list[str]) -> Path | None:
    """The file or folder of the run called `name`; None if it is missing, or a link that leads out of the run."""
    path = run / name
    if is_inside(run, path):
        return path
    if path.is_symlink():
        notes.append(link_note(name))
    return None


def _evaluations(history: EvalHistory) -> Iterator[EvaluationRow]:
    for step, results in history.evaluations.items():
        for name, result in results.items():
            for metric, metric_result in result.metrics.items():
                estimate = metric_result.estimate
                yield EvaluationRow(str(step), name, metric, estimate, estimate.interval, metric_result.k)


def _section(path: Path) -> Section:
    """The trajectories of one optimizer step, grouped by task. Raises DataError for a file that no run writes."""
    rows = list(read_transcripts(path))
    try:
        return _step_section(rows)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} holds a transcript that no run writes: {error!r}") from None


def _step_section(rows: Sequence[Transcript]) -> Section:
    banks = {(row.task_id, row.index): row.bank for row in rows}
    groups = group_by_task((row.task_id, row.question, _episode(row, banks)) for row in rows)
    return Section(str(rows[0].step) if rows else "", groups)


def _episode(row: Transcript, banks: Banks) -> ShownEpisode:
    steps = f"; by step: {format_scores(row.step_rewards)}" if row.step_rewards else ""
    return ShownEpisode(
        label=f"episode {row.index}",
        score=row.reward,
        facts=[
            ("Question", row.question),
            ("Gold answers", " | ".join(row.answers)),
            ("Answer", "none" if row.answer is None else row.answer),
            ("Reward", f"{format_score(row.reward)} ({format_scores(row.parts)}{steps})"),
        ],
        turns=[{**turn.to_json(), "advantage": row.advantage.get(turn.step)} for turn in row.turns],
        bank=_bank(row, banks),
    )


def _bank(row: Transcript, banks: Banks) -> Bank | None:
    if row.bank is None:
        return None
    same = row.bank.get("same_as")
    earlier = banks.get((row.task_id, same)) if isinstance(same, int) else None
    if earlier is None:
        return Bank.from_record(row.bank)
    # Turns of another episode made this bank.
    changes = [{**change, "turn": None} for change in earlier.get("changes", ())]  # type: ignore[attr-defined]
    return Bank.from_record({**earlier, **row.bank, "changes": changes})

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
from memfactory.view.episodes import Attempt, Bank, Group, Page, grouped, scores_told, spread, within


def run_page(run: Path, steps: int) -> Page:
    """The page of the run in `run`, with the transcripts of at most `steps` optimizer steps."""
    notes: list[str] = []
    inside = {name: _inside(run, name, notes) for name in ("transcripts", "metrics.jsonl", "eval.json", "config.yaml")}
    nothing = run / "nothing"
    history = EvalHistory.load(inside["eval.json"] or nothing)
    metrics = inside["metrics.jsonl"]
    transcripts = sorted((inside["transcripts"] or nothing).glob("step-*.jsonl"))
    transcripts = [path for path in transcripts if _inside(run, f"transcripts/{path.name}", notes)]
    shown = spread(transcripts, steps)
    if len(shown) < len(transcripts):
        notes.append(f"Transcripts of {len(shown)} of {len(transcripts)} steps are shown, evenly spread.")
    if metrics is not None and (lines := count_lines(metrics)) > MOST_LINES:
        notes.append(f"Curves are drawn from {MOST_LINES:,} of {lines:,} lines of metrics, evenly spread.")
    drawn = pictures(metrics or nothing, history)
    return Page(
        name=run.resolve().name,
        sections_are="Step",
        sections=[_section(path) for path in shown],
        notes=notes,
        figures={name: "data:image/png;base64," + base64.b64encode(held).decode() for name, held in drawn.items()},
        evaluations=list(_evaluations(history)),
        config=""
        if inside["config.yaml"] is None
        else inside["config.yaml"].read_text(encoding="utf-8", errors="replace"),
    )


def _inside(run: Path, name: str, notes: list[str]) -> Path | None:
    """The part of the run called `name`; None where there is none, or a link that leads out of the run."""
    path = run / name
    if within(run, path):
        return path
    if path.is_symlink():
        notes.append(f"{name} is a link out of the folder and is not shown.")
    return None


def _evaluations(history: EvalHistory) -> Iterator[Mapping[str, object]]:
    for step, results in history.evaluations.items():
        for name, result in results.items():
            for metric, found in result.metrics.items():
                yield {
                    "what": f"step {step}",
                    "dataset": name,
                    "metric": metric,
                    "mean": found.mean,
                    "standard_error": found.standard_error,
                    "interval": found.estimate.interval,
                    "n": found.n,
                    "k": found.k,
                }


def _section(path: Path) -> tuple[str, list[Group]]:
    """The trajectories of one optimizer step, grouped by task. Raises DataError for what no run writes."""
    rows = list(read_transcripts(path))
    try:
        return _told(rows)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} holds a transcript that no run writes: {error!r}") from None


def _told(rows: Sequence[Transcript]) -> tuple[str, list[Group]]:
    banks = {(row.task_id, row.index): row.bank for row in rows}
    groups = grouped((row.task_id, row.question, _attempt(row, banks)) for row in rows)
    return str(rows[0].step) if rows else "", groups


def _attempt(row: Transcript, banks: Mapping[tuple[str, int], Mapping[str, object] | None]) -> Attempt:
    reward = "unknown" if row.reward is None else format(row.reward, ".3f")
    steps = f"; by step: {scores_told(row.step_rewards)}" if row.step_rewards else ""
    return Attempt(
        label=f"attempt {row.index}",
        score=row.reward,
        facts=[
            ("Question", row.question),
            ("Gold answers", " | ".join(row.answers)),
            ("Answer", "nothing" if row.answer is None else row.answer),
            ("Reward", f"{reward} ({scores_told(row.parts)}{steps})"),
        ],
        turns=[{**turn.to_json(), "advantage": row.advantage.get(turn.step)} for turn in row.turns],
        bank=_bank(row, banks),
    )


def _bank(row: Transcript, banks: Mapping[tuple[str, int], Mapping[str, object] | None]) -> Bank | None:
    if row.bank is None:
        return None
    same = row.bank.get("same_as")
    earlier = banks.get((row.task_id, same)) if isinstance(same, int) else None
    if earlier is None:
        return Bank.of(row.bank)
    # The turns that made it are another attempt's.
    changes = [{**change, "turn": None} for change in earlier.get("changes", ())]  # type: ignore[attr-defined]
    return Bank.of({**earlier, **row.bank, "changes": changes})

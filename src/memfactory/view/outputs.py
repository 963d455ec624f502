"""The pages of an evaluation's output and of a file of answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memfactory.errors import ConfigError, DataError
from memfactory.evaluation.statistics import Estimate
from memfactory.files.json_lines import json_lines_or_problems, read_json_lines
from memfactory.view.episodes import ROWS_SHOWN, Bank, EpisodeGroup, ShownEpisode, format_scores, group_by_task, spread
from memfactory.view.links import is_inside, link_note
from memfactory.view.page import EvaluationRow, Page, Section


def answers_page(path: Path) -> Page:
    """The page of a .jsonl file of answers (`infer --output`) or of samples (`eval`)."""
    notes: list[str] = []
    return Page(name=path.name, sections_are="File", sections=[Section(path.name, _groups(path, notes))], notes=notes)


def evaluation_page(output: Path) -> Page:
    """The page of the folder that `eval` wrote: its results, and its samples by model and dataset."""
    notes: list[str] = []
    rows, config = _results(output)
    sections = []
    for path in sorted(output.glob("samples/**/*.jsonl")):
        title = " / ".join(path.relative_to(output / "samples").with_suffix("").parts)
        if is_inside(output, path):
            sections.append(Section(title, _groups(path, notes)))
        else:
            notes.append(link_note(title))
    return Page(output.resolve().name, "Samples", sections, notes, evaluations=rows, config=config)


def _results(output: Path) -> tuple[list[EvaluationRow], str]:
    """The rows of the table, and the configs as text. Raises DataError for a results.json of another shape."""
    path = output / "results.json"
    if not is_inside(output, path):
        raise ConfigError(f"{path} is a link out of the folder; such links are not followed")
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        rows = [
            _evaluation_row(label, name, metric, result)
            for label, model in models.items()
            for name, dataset in model["datasets"].items()
            for metric, result in dataset["metrics"].items()
        ]
        configs = {label: model["config"] for label, model in models.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path} is not a results.json of eval: {error!r}") from None
    return rows, json.dumps(configs, indent=2, ensure_ascii=False)


def _evaluation_row(label: str, dataset: str, metric: str, result: Mapping[str, Any]) -> EvaluationRow:
    error = result["standard_error"]
    estimate = Estimate(float(result["mean"]), None if error is None else float(error), int(result["n"]))
    return EvaluationRow(label, dataset, metric, estimate, estimate.interval, int(result["k"]))


def _groups(path: Path, notes: list[str]) -> list[EpisodeGroup]:
    """The episodes in a file, grouped by task. Raises DataError for rows that neither infer nor eval writes."""
    lines = _newest_lines(path)
    if len(lines) > ROWS_SHOWN:
        lines = spread(lines, ROWS_SHOWN)
        notes.append(f"{path.name}: the page shows {ROWS_SHOWN} rows, evenly spread from the first to the last.")
    return group_by_task(_episodes(path, read_json_lines(path, set(lines))))


def _newest_lines(path: Path) -> list[int]:
    """The numbers of the lines that count: the newest record of a sample replaces those before it."""
    newest: dict[object, int] = {}
    for number, row in enumerate(json_lines_or_problems(path), start=1):
        if isinstance(row, str):
            newest[number] = number
        elif "fingerprint" not in row:
            newest[str(row.get("task_id", row.get("id"))), str(row.get("sample"))] = number
    return sorted(newest.values())


def _episodes(path: Path, rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, str, ShownEpisode]]:
    for row in rows:
        try:
            task = str(row["task_id"] if "task_id" in row else row["id"])
            yield task, str(row["question"]), _episode(row)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path} holds a row that neither infer nor eval writes ({error!r}): {row!r:.80}") from None


def _episode(row: Mapping[str, Any]) -> ShownEpisode:
    scores: Mapping[str, float | None] = row.get("scores", {})
    facts = [
        ("Question", str(row["question"])),
        *([("Gold answers", " | ".join(row["answers"]))] if "answers" in row else []),
        ("Answer", "none" if row["answer"] is None else str(row["answer"])),
        *([("Scores", format_scores(scores))] if scores else []),
        *([("Failure", str(row["failure"]))] if row.get("failure") else []),
    ]
    bank = row.get("bank")
    if bank:
        facts.append(("Memory bank", f"{bank['items']} items, {bank['words']} words; the page shows retrieved items"))
    elif row.get("memory") and "items" not in row:
        facts.append(("Memory", str(row["memory"])))
    has_bank = bank or "items" in row or row.get("retrieved")
    size = {"size": bank["items"]} if bank else {}
    return ShownEpisode(
        label=f"sample {row['sample']}" if "sample" in row else "answer",
        score=next(iter(scores.values()), None),
        facts=facts,
        turns=[{**turn, "reply": turn["text"]} for turn in row["turns"]],
        bank=Bank.from_record({**row, **size}) if has_bank else None,
    )

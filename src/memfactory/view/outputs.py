"""The pages of an evaluation's output and of a file of answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memfactory.errors import ConfigError, DataError
from memfactory.evaluation.statistics import Estimate
from memfactory.files.json_lines import json_lines_or_problems, read_json_lines
from memfactory.view.episodes import ROWS_SHOWN, Attempt, Bank, Group, Page, grouped, scores_told, spread, within


def answers_page(path: Path) -> Page:
    """The page of a .jsonl file of answers (`infer --output`) or of samples (`eval`)."""
    notes: list[str] = []
    return Page(name=path.name, sections_are="File", sections=[(path.name, _groups(path, notes))], notes=notes)


def evaluation_page(output: Path) -> Page:
    """The page of the folder that `eval` wrote: its results, and its samples by model and dataset."""
    notes: list[str] = []
    results, config = _results(output)
    sections = []
    for path in sorted(output.glob("samples/**/*.jsonl")):
        title = " / ".join(path.relative_to(output / "samples").with_suffix("").parts)
        if within(output, path):
            sections.append((title, _groups(path, notes)))
        else:
            notes.append(f"{title} is a link out of the folder and is not shown.")
    return Page(output.resolve().name, "Samples", sections, notes, evaluations=results, config=config)


def _results(output: Path) -> tuple[list[Mapping[str, object]], str]:
    """The rows of the table, and the configs as text. Raises DataError for a results.json of another shape."""
    path = output / "results.json"
    if not within(output, path):
        raise ConfigError(f"{path} is a link out of the folder, and such are not followed")
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        rows: list[Mapping[str, object]] = [
            {
                "what": label,
                "dataset": name,
                "metric": metric,
                **{key: found[key] for key in ("mean", "standard_error", "n", "k")},
                "interval": Estimate(float(found["mean"]), found["standard_error"], int(found["n"])).interval,
            }
            for label, model in models.items()
            for name, dataset in model["datasets"].items()
            for metric, found in dataset["metrics"].items()
        ]
        configs = {label: model["config"] for label, model in models.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not what eval writes: {error!r}") from None
    return rows, json.dumps(configs, indent=2, ensure_ascii=False)


def _groups(path: Path, notes: list[str]) -> list[Group]:
    """The attempts in a file, grouped by task. Raises DataError for rows that neither infer nor eval writes."""
    lines = _newest(path)
    if len(lines) > ROWS_SHOWN:
        lines = spread(lines, ROWS_SHOWN)
        notes.append(f"{path.name}: at most {ROWS_SHOWN} rows are shown, evenly spread from the first to the last.")
    return grouped(_attempts(path, read_json_lines(path, set(lines))))


def _newest(path: Path) -> list[int]:
    """The numbers of the lines that count: a record of an attempt replaces those before it, as where it is rescored."""
    newest: dict[object, int] = {}
    for number, row in enumerate(json_lines_or_problems(path), start=1):
        if isinstance(row, str):
            newest[number] = number
        elif "fingerprint" not in row:
            newest[str(row.get("task_id", row.get("id"))), str(row.get("sample"))] = number
    return sorted(newest.values())


def _attempts(path: Path, rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, str, Attempt]]:
    for row in rows:
        try:
            task = str(row["task_id"] if "task_id" in row else row["id"])
            yield task, str(row["question"]), _attempt(row)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path} holds a row that neither infer nor eval writes ({error!r}): {row!r:.80}") from None


def _attempt(row: Mapping[str, Any]) -> Attempt:
    scores: Mapping[str, float | None] = row.get("scores", {})
    facts = [
        ("Question", str(row["question"])),
        *([("Gold answers", " | ".join(row["answers"]))] if "answers" in row else []),
        ("Answer", "nothing" if row["answer"] is None else str(row["answer"])),
        *([("Scores", scores_told(scores))] if scores else []),
        *([("Failure", str(row["failure"]))] if row.get("failure") else []),
    ]
    held = row.get("bank")
    if held:
        facts.append(("Memory bank", f"{held['items']} items, {held['words']} words; retrieved items are shown"))
    elif row.get("memory") and "items" not in row:
        facts.append(("Memory", str(row["memory"])))
    has_bank = held or "items" in row or row.get("retrieved")
    turns = [{**turn, "reply": turn["text"]} for turn in row["turns"]]
    size = {"size": held["items"]} if held else {}
    return Attempt(
        label=f"attempt {row.get('sample', 0)}",
        score=next(iter(scores.values()), None),
        facts=facts,
        turns=turns,
        bank=Bank.of({**row, **size}) if has_bank else None,
    )

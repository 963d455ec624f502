"""Prints the tables of docs/benchmarks from finished runs and from evaluations beside a baseline.

python scripts/quickstart_table.py RUN...                    held-out results before and after training
python scripts/quickstart_table.py EVALUATION/results.json... the first model against the second (a baseline)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--metric", default="boxed_em")
    parser.add_argument("--data", default="held_out", help="the evaluation set")
    arguments = parser.parse_args()
    if all(path.is_file() for path in arguments.runs):
        print("| model | baseline | trained | difference | 95 % interval |")
        print("|---|--:|--:|--:|---|")
        for path in arguments.runs:
            print(against_baseline(path, arguments.data, arguments.metric))
    else:
        print("| run | before | after | difference | 95 % interval | steps | training, s |")
        print("|---|--:|--:|--:|---|--:|--:|")
        for folder in arguments.runs:
            print(before_and_after(folder, arguments.data, arguments.metric))


def before_and_after(folder: Path, data: str, metric: str) -> str:
    """One run: its first and last evaluation, the paired difference and the training time."""
    history = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    before, after = (history["evaluations"][at]["datasets"][data]["metrics"][metric] for at in (0, -1))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = sum(row["seconds"] for row in rows)
    difference = shown_difference(history["difference"][data][metric])
    return f"| {folder.name} | {shown(before)} | {shown(after)} | {difference} | {len(rows)} | {seconds:.0f} |"


def against_baseline(path: Path, data: str, metric: str) -> str:
    """One evaluation: its first model, and how much better it is than its second."""
    results = json.loads(path.read_text(encoding="utf-8"))
    (name, trained), (_, baseline) = list(results["models"].items())[:2]
    after, before = (model["datasets"][data]["metrics"][metric] for model in (trained, baseline))
    (compared,) = list(results["differences"]["models"].values())[:1]
    difference = compared[data][metric]
    return f"| {name} | {shown(before)} | {shown(after)} | {shown_difference(difference, -1)} |"


def shown(result: Mapping[str, Any]) -> str:
    return f"{result['mean']:.3f} ± {result['standard_error']:.3f}"


def shown_difference(difference: Mapping[str, Any], sign: int = 1) -> str:
    """The difference and its interval, as the evaluation gives them; `sign` -1 turns both round."""
    low, high = sorted(sign * bound for bound in difference["interval"])
    return f"{sign * difference['mean']:+.3f} | {low:+.3f} to {high:+.3f}"


if __name__ == "__main__":
    main()

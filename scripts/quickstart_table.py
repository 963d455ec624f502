"""Prints the table of docs/benchmarks/quickstart.md from finished runs: scripts/quickstart_table.py RUN..."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folders: list[str]) -> None:
    """Print held-out exact match before and after, the paired difference and the training time of each run."""
    print("| run | before | after | difference | 95 % interval | steps | training, s |")
    print("|---|--:|--:|--:|---|--:|--:|")
    for folder in map(Path, folders):
        history = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        before, after = (history["evaluations"][at]["datasets"]["held_out"]["metrics"]["boxed_em"] for at in (0, -1))
        difference = history["difference"]["held_out"]["boxed_em"]
        low, high = (difference["mean"] + sign * 1.96 * difference["standard_error"] for sign in (-1, 1))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        print(
            f"| {folder.name} | {before['mean']:.3f} ± {before['standard_error']:.3f} "
            f"| {after['mean']:.3f} ± {after['standard_error']:.3f} | {difference['mean']:+.3f} "
            f"| {low:+.3f} to {high:+.3f} | {len(rows)} | {sum(row['seconds'] for row in rows):.0f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])

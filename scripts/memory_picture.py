"""Draws docs/images/memory.png: the memory after each chunk of one held-out text, before and after the quickstart.

memfactory train configs/quickstart.yaml --output runs/quickstart
python scripts/memory_picture.py runs/quickstart --output docs/images/memory.png

Both models answer the held-out questions of the quickstart once, sampled at temperature 1 with equal seeds. The picture
shows the first question that only the trained model answers and whose answer the untrained model's memory has lost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfactory.model.chat import ChatFormat
from memfactory.text import chunk_cuts, token_spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 36
"""Characters of a line in a box."""
BLUE, RED, GREEN, GREY = "#1f5fa8", "#b53a4b", "#2f8f5b", "#5f646d"


@dataclass(frozen=True)
class Answered:
    """One question as a model answered it: its memory after each chunk, and its answer."""

    memories: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Shown:
    """The text of the picture: question, gold answer, chunks, and both models' replies."""

    question: str
    gold: str
    chunks: tuple[str, ...]
    before: Answered
    after: Answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder of a finished quickstart")
    parser.add_argument("--output", type=Path, default=Path("docs/images/memory.png"))
    arguments = parser.parse_args()
    shown = first_gained(arguments.run)
    draw(shown, scores(arguments.run), arguments.output)
    print(f"{arguments.output}: {shown.question} {shown.before.answer} -> {shown.after.answer}")


def first_gained(run: Path) -> Shown:
    """The first held-out question that only the trained model answers. Raises SystemExit without one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        memfactory("data", "export", "facts", "rows=128", "split=heldout", "--output", rows)
        before = answered(run, rows, folder / "before.jsonl", "model={path: tiny, dtype: float32, cpu_threads: 1}")
        after = answered(run, rows, folder / "after.jsonl")
        for row in read(rows):
            question, gold = str(row["input"]), str(row["answers"][0])
            first, last = before[str(row["index"])], after[str(row["index"])]
            if last.answer == gold != first.answer and gold not in first.memories[-1]:
                return Shown(question, gold, chunks(run, str(row["context"])), first, last)
    raise SystemExit(f"{run}: no held-out question is answered only after training")


def answered(run: Path, rows: Path, output: Path, *overrides: str) -> dict[str, Answered]:
    """The replies of the run's model, or of another one with `overrides`, by the row's id."""
    memfactory("infer", run, *overrides, "--input", rows, "--output", output, "--temperature", "1")
    return {
        row["id"]: Answered(
            tuple(turn["text"].strip() for turn in row["turns"] if turn["step"] == "update"), str(row["answer"]).strip()
        )
        for row in read(output)
    }


def chunks(run: Path, text: str, tokens: int = 64) -> tuple[str, ...]:
    """`text` in chunks of `tokens`, as the quickstart's agent reads it."""
    from transformers import AutoTokenizer

    chat = ChatFormat(AutoTokenizer.from_pretrained(run / "final"))
    cuts, _ = chunk_cuts(text, token_spans(text, chat.offsets), tokens)
    return tuple(text[a:b].strip() for a, b in pairwise(cuts))


def scores(run: Path) -> str:
    """Held-out exact match before and after the run, with standard errors."""
    history = json.loads((run / "eval.json").read_text(encoding="utf-8"))["evaluations"]
    both = [entry["datasets"]["held_out"]["metrics"]["boxed_em"] for entry in (history[0], history[-1])]
    first, last = (f"{metric['mean']:.3f} ± {metric['standard_error']:.3f}" for metric in both)
    return f"Exact match on 128 held-out questions: {first} before, {last} after training"


def memfactory(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "memfactory", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw(shown: Shown, title: str, output: Path) -> None:
    """Three rows of boxes: the chunks, the memories before training, the memories after it, each with the answer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(0, 12), ylim=(0, 4.2))
    axes.text(0.2, 3.92, f"{shown.question}  (answer: {shown.gold})", size=13, weight="bold")
    axes.text(0.2, 3.66, title, size=9.5, color=GREY)
    person = next(word for word in shown.question.split()[1:] if word[0].isupper())
    for place, chunk in enumerate(shown.chunks):
        left = 1.5 + 3.0 * place
        box(axes, (left, 2.05), (2.8, 1.42), GREY)
        axes.text(left + 0.1, 3.3, f"chunk {place + 1}", size=9, color=GREY, weight="bold")
        write(axes, (left + 0.1, 3.12), chunk, person)
    for label, replies, bottom in (("before", shown.before, 1.1), ("after", shown.after, 0.15)):
        right = replies.answer == shown.gold
        colour = GREEN if right else RED
        axes.text(0.2, bottom + 0.5, f"memory\n{label}\ntraining", size=9.5, color=colour, weight="bold", va="center")
        for place, memory in enumerate(replies.memories):
            left = 1.5 + 3.0 * place
            box(axes, (left, bottom), (2.8, 0.8), colour)
            written = "\n".join(textwrap.wrap(memory, COLUMNS, max_lines=3))
            axes.text(left + 0.1, bottom + 0.4, written, size=9, family="monospace", va="center")
        axes.text(10.5, bottom + 0.4, f"{'✓' if right else '✗'} {replies.answer}", size=13, color=colour, va="center")
    axes.text(10.5, 2.1, "answer", size=9, color=GREY, weight="bold")
    figure.savefig(output)


def box(axes: Axes, corner: tuple[float, float], size: tuple[float, float], colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=1.2))


def write(axes: Axes, corner: tuple[float, float], text: str, person: str) -> None:
    """`text` in lines of monospaced characters, the sentences that name `person` in colour."""
    sentences = text.replace(". ", ".\n").split("\n")
    words = [(word, person in sentence) for sentence in sentences for word in sentence.split()]
    left, line = 0, 0
    for word, named in words:
        if left and left + len(word) > COLUMNS + 6:
            left, line = 0, line + 1
        x, y = corner[0] + left * 0.0625, corner[1] - line * 0.15
        weight, colour = ("bold", BLUE) if named else ("normal", GREY)
        axes.text(x, y, word, size=7.5, family="monospace", color=colour, weight=weight, va="center")
        left += len(word) + 1


if __name__ == "__main__":
    main()

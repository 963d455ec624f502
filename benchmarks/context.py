"""Times MemoryAgent on ever longer texts: python -m benchmarks.context [LENGTH...] [--json FILE] [--picture FILE].

Each length is read in a process of its own, by the product's engine and agent with a random model, greedily. The text
is that of RULER's variable tracking. Memory is the peak of resident memory above its level before the
reading, with model and text loaded. See docs/benchmarks/context.md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.measure import child_environment, machine, resident_bytes
from benchmarks.product import local_model
from benchmarks.workloads import Size, write_model
from memfactory.build import Runtime, build_runtime
from memfactory.config import load_config
from memfactory.data.benchmarks.ruler import make_vt
from memfactory.evaluation.episodes import play_episodes
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.text import token_spans
from memfactory.types import Codec, SamplingParams, Task

SIZE = Size(layers=2)
"""3.67 million parameters, more than half of them the vocabulary's."""
LENGTHS = (4096, 16384, 65536, 262144, 1048576)
BLUE, GREY = "#1f5fa8", "#8a8f98"


@dataclass(frozen=True)
class Reading:
    """One text that was read: its tokens, those of prompts and replies, and the cost.

    Seconds are the processor's, which other work on the machine disturbs least; `cutting_seconds` are those of finding
    the tokens of the text alone.
    """

    tokens: int
    asks: int
    longest_prompt: int
    prompt_tokens: int
    reply_tokens: int
    seconds: float
    wall_seconds: float
    cutting_seconds: float
    text_mb: float
    peak_mb: float

    @property
    def per_thousand(self) -> float:
        """Seconds for a thousand tokens of text."""
        return 1000 * self.seconds / self.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("lengths", nargs="*", type=int, default=LENGTHS, help="tokens of each text")
    add("--model", help="tiny, a hub id or a folder: its architecture with random weights, instead of 3.67 million")
    add("--chunk-tokens", type=int, default=2500)
    add("--memory-tokens", type=int, default=64)
    add("--threads", type=int, default=1)
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the product's config")
    add("--json", type=Path, help="write the measurements there")
    add("--picture", type=Path, help="draw it there")
    add("--measured", type=Path, help="print and draw an earlier --json; measure nothing")
    add("--alone", action="store_true", help="read the one length in this process and print it as JSON")
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(asdict(measured(args.lengths[0], args))))
        return
    report = json.loads(args.measured.read_text()) if args.measured else measured_apart(args)
    readings = [Reading(**row) for row in report["readings"]]
    print(table(readings))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.picture:
        draw(readings, args.picture)


def measured_apart(args: argparse.Namespace) -> dict[str, Any]:
    """Every length in a process of its own, and the hardware."""
    torch.set_num_threads(args.threads)
    rows = []
    for length in args.lengths:
        options = ["--chunk-tokens", args.chunk_tokens, "--memory-tokens", args.memory_tokens]
        options += ["--threads", args.threads, *(["--model", args.model] if args.model else [])]
        words = [
            sys.executable,
            "-m",
            "benchmarks.context",
            length,
            "--alone",
            *options,
            *(["--set", *args.set] if args.set else []),
        ]
        environment = child_environment()
        done = subprocess.run(
            [str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{length:,} tokens: {rows[-1]['seconds']:.1f} s", file=sys.stderr)
    work = {"chunk_tokens": args.chunk_tokens, "memory_tokens": args.memory_tokens, "set": args.set}
    model = args.model or asdict(SIZE)
    return {"work": work, "model": model, "machine": machine(torch.device("cpu")), "readings": rows}


def measured(length: int, args: argparse.Namespace) -> Reading:
    """Read a text of about `length` tokens."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        stack = loaded(Path(folder), args)
    text = written(length, stack.codec)
    begun = time.process_time()
    tokens = sum(len(part) for part in token_spans(text, stack.codec.offsets))
    cutting_seconds = time.process_time() - begun
    read(stack, "The first call of everything takes longer.")
    before = since_now()
    begun, wall = time.process_time(), time.perf_counter()
    turns = read(stack, text)
    seconds, wall_seconds = time.process_time() - begun, time.perf_counter() - wall
    peak = resident_bytes()[1]
    lengths = [turn.lengths for turn in turns]
    stack.close()
    return Reading(
        tokens=tokens,
        asks=len(lengths),
        longest_prompt=max(prompt for prompt, _ in lengths),
        prompt_tokens=sum(prompt for prompt, _ in lengths),
        reply_tokens=sum(reply for _, reply in lengths),
        seconds=seconds,
        wall_seconds=wall_seconds,
        cutting_seconds=cutting_seconds,
        text_mb=sys.getsizeof(text) / 1e6,
        peak_mb=(peak - before) / 1e6,
    )


def loaded(folder: Path, args: argparse.Namespace) -> Runtime:
    """Model, engine and agent from a config, as `memfactory infer` makes them; replies never end by themselves."""
    model = write_model(folder / "model", args.model or SIZE)
    agent = {
        "name": "memory_agent",
        "chunk_tokens": args.chunk_tokens,
        "memory_tokens": args.memory_tokens,
        "answer_tokens": 16,
        "max_chunks": None,
    }
    config = {
        "model": {"path": str(model), "random_weights": True, "dtype": "float32", "cpu_threads": args.threads},
        "agent": agent,
        "env": "longcontext",
    }
    # JSON is YAML.
    (folder / "bench.yaml").write_text(json.dumps(config))
    stack = build_runtime(load_config(folder / "bench.yaml", args.set, command="infer"), training=False)
    local_model(stack)[1].stop_ids = frozenset()
    return stack


def written(length: int, codec: Codec) -> str:
    """RULER's variable tracking with about `length` tokens."""
    lines = 100
    sample = len(codec.offsets(make_vt(Random(0), lines, length).context))
    return make_vt(Random(0), max(5, lines * length // sample), length).context


def read(stack: Runtime, text: str) -> Sequence[Any]:
    """The turns of one episode with a question about `text`."""
    task = Task("task", "Which variables have the value 12345?", (), text)
    greedy = EvaluationSettings(sampling_params=SamplingParams(temperature=0.0))
    (episode,) = play_episodes(stack, [(task, 0)], greedy)
    return episode.turns


def since_now() -> float:
    """The resident memory without free pages; resets the system's peak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()[0]


def table(readings: Sequence[Reading]) -> str:
    """The measurements as Markdown."""
    head = (
        "tokens of text",
        "asks",
        "longest prompt",
        "tokens through the model",
        "seconds",
        "seconds per 1,000 tokens",
    )
    rows = ["| " + " | ".join([*head, "text, MB", "peak above the start, MB"]) + " |", "|" + "--:|" * 8]
    for one in readings:
        passed = one.prompt_tokens + one.reply_tokens
        rows.append(
            f"| {one.tokens:,} | {one.asks} | {one.longest_prompt:,} | {passed:,} | {one.seconds:.1f} | "
            f"{one.per_thousand:.3f} | {one.text_mb:.2f} | {one.peak_mb:.0f} |"
        )
    return "\n".join(rows)


def short(count: int) -> str:
    """A count in thousands or millions."""
    return f"{count / 1e6:.2g}M" if count >= 1e6 else f"{count / 1e3:.0f}k"


def draw(readings: Sequence[Reading], path: Path) -> None:
    """Seconds and peak memory over the text's length, both axes logarithmic, beside a linear and a constant line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    tokens = [one.tokens for one in readings]
    mean = sum(one.seconds for one in readings) / sum(tokens)
    left.plot(tokens, [mean * count for count in tokens], color=GREY, linewidth=1, label="linear")
    left.plot(tokens, [one.seconds for one in readings], "o", color=BLUE, label="measured")
    left.set_title("Seconds on one thread", fontsize=10, loc="left")
    left.legend(frameon=False, fontsize=8)
    right.plot(tokens, [one.peak_mb for one in readings], "o-", color=BLUE, linewidth=1, label="peak above the start")
    right.plot(tokens, [one.text_mb for one in readings], "s:", color=GREY, linewidth=1, label="the text itself")
    right.set_title("Memory, MB", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(tokens, [short(count) for count in tokens], fontsize=8)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("tokens of text", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e8ec", linewidth=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()

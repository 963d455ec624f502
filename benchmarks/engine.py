"""Times sampling alone: python -m benchmarks.engine [--batch N...] [--group N...] [--prompt-tokens N...] [options].

Sides alternate in one process: `hf`, the product's engine as configured (with --set), `generate`, the baseline on one
batch padded on the left, `other`, the product with --other-set, and `vllm` where it is installed. Every combination of
the lists is one row. See docs/benchmarks/speed.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch

from benchmarks.arguments import add_model, dtype_of, model_folder, settings_of
from benchmarks.floor import decode_bytes
from benchmarks.measure import Clock, machine, memory_bandwidth
from benchmarks.plain import PlainEngine
from benchmarks.product import endless, local_model, shorten
from benchmarks.workloads import Work, Writer, configured
from memfactory.build import build_runtime
from memfactory.components import POLICY
from memfactory.engines.base import sample
from memfactory.errors import MemFactoryError
from memfactory.model.loading import resolve_device
from memfactory.plan.footprint import architecture
from memfactory.types import Message, Reply, Sampling

SIDES = ("hf", "generate", "other", "vllm")


@dataclass(frozen=True)
class Case:
    """`batch` conversations in groups of `group` with an equal prompt of `prompt_tokens` words.

    With `ragged` above 0 prompts and replies have log-normal lengths, of that sigma, of which these are the longest.
    """

    batch: int
    group: int
    prompt_tokens: int
    new_tokens: int
    ragged: float

    def conversations(self, folder: Path, seed: int) -> list[tuple[tuple[Message, ...], Sampling]]:
        """The conversations to sample; another `seed` gives other words, so that no cache helps."""
        writer, random = Writer(folder, seed), numpy.random.default_rng(seed)
        conversations = []
        for number in range(self.batch):
            if number % self.group == 0:
                share = min(1.0, float(numpy.exp(self.ragged * random.standard_normal())) / 3) if self.ragged else 1.0
                prompt = (Message("user", writer.words(max(1, int(share * self.prompt_tokens)))),)
            conversations.append((prompt, Sampling(self.new_tokens, seed=1000 * seed + number)))
        return conversations


class Side:
    """An engine with a clock around it."""

    def __init__(self, name: str, args: argparse.Namespace, model: Path, folder: Path) -> None:
        kind = ["engine.kind=vllm"] if name == "vllm" else []
        resolved = configured(Work("rmm"), model, folder / name, settings_of(args, other=name == "other") + kind)
        stack = endless(build_runtime(resolved, training=False), 0.0)
        self.engine: Any = stack.engines[POLICY]
        if name == "generate":
            self.engine = PlainEngine(*local_model(stack), dtype_of(args))
        self.clock = Clock(resolve_device(args.device))
        self.sizes = None
        if stack.model is not None:
            self.clock.watch(stack.model)
            self.sizes = architecture(stack.model.config)
        self._submit = self.engine.submit

    def timed(self, conversations: Sequence[tuple[tuple[Message, ...], Sampling]], ragged: float) -> list[Reply]:
        """The replies; the clock has their times."""
        self.engine.submit = self._submit
        if ragged:
            shorten(self.engine, ragged)
        self.clock.reset()
        with self.clock.phase("decode"):
            return sample(self.engine, conversations)


def measured(case: Case, sides: dict[str, Side], model: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds of prefilling and decoding, passes, tokens and bytes of each side, a value for each repeat."""
    results: dict[str, dict[str, Any]] = {name: {"prefill": [], "decode": [], "bytes": []} for name in sides}
    dtype = str(dtype_of(args)).removeprefix("torch.")
    for turn in range(args.repeats + 1):
        conversations = case.conversations(model, turn)
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            side = sides[name]
            replies = side.timed(conversations, case.ragged)
            lengths = [(len(r.tokens.prompt_ids), len(r.tokens.reply_ids)) for r in replies if r.tokens is not None]
            if turn == 0:
                continue
            for phase in ("prefill", "decode"):
                results[name][phase].append(side.clock.seconds[phase])
            passes = side.clock.calls["decode"]
            read = decode_bytes(lengths, side.sizes, dtype, passes) if side.sizes else 0.0
            results[name]["bytes"].append(read)
            results[name] |= {"passes": passes, "sampled": sum(reply for _, reply in lengths)}
    return results


def print_case(case: Case, results: dict[str, dict[str, Any]], bandwidth: float) -> None:
    first = next(iter(results))
    whole = {name: [a + b for a, b in zip(v["prefill"], v["decode"], strict=True)] for name, v in results.items()}
    for name, values in results.items():
        against = median(theirs / ours for ours, theirs in zip(whole[first], whole[name], strict=True))
        share = median(read / took for read, took in zip(values["bytes"], values["decode"], strict=True)) / bandwidth
        print(
            f"| {case.batch} | {case.group} | {case.prompt_tokens} | {case.new_tokens} | {case.ragged:g} | {name} | "
            f"{median(values['prefill']):.3f} | {median(values['decode']):.3f} | "
            f"{values['sampled'] / median(whole[name]):,.0f} | {values['sampled'] / median(values['decode']):,.0f} | "
            f"{f'{share:.0%}' if share else ''} | {against:.2f} |",
            flush=True,
        )


def cases(args: argparse.Namespace) -> Iterator[Case]:
    lists = (args.batch, args.group, args.prompt_tokens, args.new_tokens, args.ragged)
    for values in product(*lists):
        case = Case(*values)
        if case.group <= case.batch:
            yield case


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--sides", nargs="+", choices=SIDES, default=["hf", "generate"])
    add("--batch", type=int, nargs="+", default=[1, 8, 64], help="conversations at one time")
    add("--group", type=int, nargs="+", default=[1, 8], help="conversations with an equal prompt")
    add("--prompt-tokens", type=int, nargs="+", default=[256, 1024])
    add("--new-tokens", type=int, nargs="+", default=[64])
    add("--ragged", type=float, nargs="+", default=[0.0, 0.7], help="spread of log-normal lengths; 0: all equal")
    add("--json", type=Path, help="write everything that was measured to this file")
    add_model(parser)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            run(args, folder)
        except MemFactoryError as error:
            sys.exit(str(error))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure every case and print its rows."""
    model = model_folder(args, folder)
    device = resolve_device(args.device)
    where, bandwidth = machine(device), memory_bandwidth(device)
    print(
        f"{where['device']}, {where['threads']} thread(s), torch {where['torch']}: "
        f"{bandwidth / 1e9:.1f} GB/s in copies\n"
    )
    sides = {name: Side(name, args, model, folder) for name in args.sides}
    columns = (
        "batch | group | prompt | reply | ragged | side | prefill s | decode s | tok/s | decoded tok/s | of copy | x"
    )
    print(f"| {columns} |")
    print("|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    report = []
    for case in cases(args):
        results = measured(case, sides, model, args)
        print_case(case, results, bandwidth)
        report.append({"case": asdict(case), "sides": results})
    for side in sides.values():
        side.engine.close()
    if args.json:
        whole = {"command": sys.argv[1:], "machine": where, "bandwidth": bandwidth, "cases": report}
        args.json.write_text(json.dumps(whole, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

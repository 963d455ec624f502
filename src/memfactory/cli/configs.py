"""`memfactory config show`, `validate` and `schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memfactory.cli.output import Trust, echo, load, refuse_options, start_logging, stdout
from memfactory.cli.runs import Overrides, Source
from memfactory.cli.words import sources_and_overrides
from memfactory.errors import ConfigError

if TYPE_CHECKING:
    from memfactory.config import Resolved

app = typer.Typer(help="Show and check configurations.", no_args_is_help=True)


@app.command(context_settings={"ignore_unknown_options": True})
def show(
    context: typer.Context,
    config: Source,
    overrides: Overrides = None,
    origin: Annotated[bool, typer.Option("--origin", help="Show the file and line of each value.")] = False,
    trust: Trust = False,
) -> None:
    """Print the resolved configuration, defaults included."""
    refuse_options(context, overrides or [])
    resolved = load(config, overrides or [], None, trust=trust)
    console = stdout()
    if origin:
        _show_origins(resolved)
    elif console.is_terminal:
        from rich.syntax import Syntax

        console.print(Syntax(resolved.to_yaml(), "yaml", background_color="default", word_wrap=True))
    else:
        echo(resolved.to_yaml(), end="")


def _show_origins(resolved: Resolved) -> None:
    from memfactory.config.problems import shown
    from memfactory.config.tree import dotted, leaves

    rows = [
        (f"{dotted(path)}: {shown(value)}", resolved.origins.get(dotted(path), "default"))
        for path, value in leaves(resolved.values)
        if path != ("resolved",)
    ]
    width = min(60, max(len(text) for text, _ in rows))
    for text, where in rows:
        echo(f"{text:<{width}}  # {where}")


@app.command(context_settings={"ignore_unknown_options": True})
def validate(
    context: typer.Context,
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG", help="Configs, run folders or models. Overrides (key=value) apply to all of them."
        ),
    ],
    command: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="COMMAND",
            help="Also check the files, keys and hardware for a command: train, eval or infer.",
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Check configurations and report every mistake."""
    if command not in (None, "train", "eval", "infer"):
        raise typer.BadParameter(f"{command!r} is none of train, eval, infer", param_hint="--for")
    refuse_options(context, configs)
    start_logging()
    sources, overrides = sources_and_overrides(configs, "config, run or model")
    problems: list[str] = []
    for config in sources:
        try:
            load(config, overrides, command, trust=trust)
        except ConfigError as error:
            problems += error.problems
        else:
            echo(f"{config}: valid")
    if problems:
        raise ConfigError(problems)


@app.command()
def schema(
    output: Annotated[typer.FileTextWrite | None, typer.Option(help="The file to write. Default: stdout.")] = None,
) -> None:
    """Print the JSON schema of a config, with every component's options, for editors.

    With `# yaml-language-server: $schema=FILE` as a config's first line, an editor completes and checks it.
    """
    import json

    from memfactory.config.describe import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if output is None:
        echo(text)
    else:
        output.write(text + "\n")

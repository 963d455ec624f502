"""`memfactory list`: all components, one line each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from memfactory.cli.output import Trust, stdout
from memfactory.errors import ConfigError, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

    from memfactory.console import Console

REGISTERED = ("agents", "modules", "envs", "rewards", "trainers", "objectives", "advantages", "datasets")
CHOSEN = ("engines", "embedders", "trackers", "optimizers")
KINDS = (*REGISTERED, *CHOSEN, "configs")


def list_components(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}. Default: all.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every option with its default.")] = False,
    config: Annotated[str | None, typer.Option(help="Also list the components of this config's plugins.")] = None,
    trust: Trust = False,
) -> None:
    """List the components for configs: agents, modules, rewards, trainers, datasets, engines, trackers, configs ..."""
    if kind is not None and kind not in KINDS:
        raise ConfigError(unknown("kind of component", kind, KINDS))
    if config is not None:
        from memfactory.config import load_config

        load_config(config, trust=trust)
    console = stdout()
    for name in KINDS if kind is None else (kind,):
        console.print(name, style="bold")
        if name == "configs":
            _show_configs(console)
        elif name in CHOSEN:
            _show_choices(console, name, verbose)
        else:
            _show_kind(console, name, verbose)


def _show_kind(console: Console, kind: str, verbose: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from memfactory.registry import ADVANTAGES, AGENTS, DATASETS, ENVS, MODULES, OBJECTIVES, REWARDS, TRAINERS, Registry

    registries: dict[str, Registry[object]] = {
        "agents": AGENTS,
        "modules": MODULES,
        "envs": ENVS,
        "rewards": REWARDS,
        "trainers": TRAINERS,
        "objectives": OBJECTIVES,
        "advantages": ADVANTAGES,
        "datasets": DATASETS,
    }
    registry = registries[kind]
    table = Table.grid(padding=(0, 2))
    for name in registry.names():
        table.add_row(Text(f"  {name}"), Text(registry.entry(name).summary))
        if verbose:
            _add_options(table, registry.options(name))
    console.print(table)


def _show_choices(console: Console, kind: str, verbose: bool) -> None:
    """Print the values of `kind`, with the options of each."""
    from rich.table import Table
    from rich.text import Text

    from memfactory.config.describe import choices

    table = Table.grid(padding=(0, 2))
    for choice in choices(kind):
        table.add_row(Text(f"  {choice.name}"), Text(choice.summary))
        if verbose and choice.options is not None:
            _add_options(table, choice.options)
    console.print(table)


def _add_options(table: Table, options: type[BaseModel]) -> None:
    from rich.text import Text

    from memfactory.components import ModuleOptions
    from memfactory.config.describe import options_of

    if issubclass(options, ModuleOptions) and (presets := options.preset_names()):
        table.add_row(Text("    prompts"), Text(f"presets of prompts: {', '.join(presets)}", style="dim"))
    for option in options_of(options):
        default = "required" if option.default is None else f"default {option.default}"
        table.add_row(Text(f"    {option.key}"), Text(f"{option.doc} [{option.type}; {default}]", style="dim"))


def _show_configs(console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from memfactory.config.parts import config_folders, runnable_configs, show_path

    table = Table.grid(padding=(0, 2))
    for name, path in sorted(runnable_configs(config_folders(None)).items()):
        table.add_row(
            Text(f"  {name}"), Text(_opening(path.read_text(encoding="utf-8"))), Text(show_path(path), style="dim")
        )
    console.print(table)


def _opening(text: str) -> str:
    """The first sentence of the comment that a config opens with."""
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<=[.])\s", " ".join(comment), maxsplit=1)[0]

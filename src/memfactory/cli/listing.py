"""`memfactory list`: all components, one line each, or as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memfactory.cli.output import Trust, echo, stdout
from memfactory.errors import ConfigError, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

    from memfactory.console import Console

REGISTERED = ("agents", "modules", "envs", "rewards", "trainers", "objectives", "advantages", "datasets")
CHOSEN = ("engines", "embedders", "trackers", "optimizers")
PROMPTS = "prompts"
KINDS = (*REGISTERED, *CHOSEN, PROMPTS, "configs")


@dataclass(frozen=True)
class Listed:
    """One line of the list: a name and a sentence.

    `options` and `prompts`, the options that each preset of a module stands for, are there for a list with details.
    `path` is the file of a config.
    """

    name: str
    summary: str
    options: type[BaseModel] | None = None
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    path: str | None = None

    def as_json(self, *, verbose: bool, with_texts: bool) -> dict[str, Any]:
        """The line as plain values: the presets as names, or `with_texts` with their options."""
        values: dict[str, Any] = {"name": self.name, "summary": self.summary}
        if self.prompts:
            values["prompts"] = self.prompts if with_texts else [*self.prompts]
        if self.path is not None:
            values["path"] = self.path
        if verbose and self.options is not None:
            from memfactory.config.describe import options_of

            values["options"] = [vars(option) for option in options_of(self.options)]
        return values


def list_components(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}. Default: all.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every option with its default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: a list by kind.")] = False,
    config: Annotated[str | None, typer.Option(help="Also list the components of this config's plugins.")] = None,
    trust: Trust = False,
) -> None:
    """List the components for configs: agents, modules, rewards, trainers, datasets, engines, prompts, configs ..."""
    if kind is not None and kind not in KINDS:
        raise ConfigError(unknown("kind of component", kind, KINDS))
    if config is not None:
        from memfactory.config import load_config

        load_config(config, trust=trust)
    kinds = KINDS if kind is None else (kind,)
    if as_json:
        import json

        values = {
            name: [line.as_json(verbose=verbose, with_texts=name == PROMPTS) for line in _listed(name, details=True)]
            for name in kinds
        }
        echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    console = stdout()
    for name in kinds:
        console.print(name, style="bold")
        _show(console, name, verbose)


def _listed(kind: str, *, details: bool) -> Iterator[Listed]:
    """The lines of `kind`; without `details` no component is imported, apart from modules for their presets."""
    if kind == "configs":
        yield from _configs()
    elif kind == PROMPTS:
        yield from _prompts()
    elif kind in CHOSEN:
        from memfactory.config.describe import choices

        yield from (Listed(choice.name, choice.summary, choice.options) for choice in choices(kind))
    else:
        yield from _registered(kind, details=details)


def _registered(kind: str, *, details: bool) -> Iterator[Listed]:
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
    presets = {line.name: line.prompts for line in _prompts()} if details and kind == "modules" else {}
    for name in registry.names():
        options = registry.options(name) if details else None
        yield Listed(name, registry.entry(name).summary, options, presets.get(name, {}))


def _prompts() -> Iterator[Listed]:
    """The modules that have presets of prompts, each with the options of its presets."""
    from memfactory.config.prompt_presets import presets_by_module

    for name, presets in presets_by_module():
        yield Listed(name, ", ".join(presets), prompts=presets)


def _configs() -> Iterator[Listed]:
    from memfactory.config.parts import config_folders, runnable_configs, show_path

    for name, path in sorted(runnable_configs(config_folders(None)).items()):
        yield Listed(name, _opening(path.read_text(encoding="utf-8")), path=show_path(path))


def _show(console: Console, kind: str, verbose: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for line in _listed(kind, details=verbose):
        place = () if line.path is None else (Text(line.path, style="dim"),)
        table.add_row(Text(f"  {line.name}"), Text(line.summary), *place)
        if verbose and kind == PROMPTS:
            _add_texts(table, line)
        elif verbose and line.options is not None:
            _add_options(table, line)
    console.print_rows(table)


def _add_texts(table: Table, line: Listed) -> None:
    from rich.text import Text

    from memfactory.config.tree import dump

    for name, options in line.prompts.items():
        table.add_row(Text(f"    {name}"), Text(dump(options).rstrip("\n"), style="dim"))


def _add_options(table: Table, line: Listed) -> None:
    from rich.text import Text

    from memfactory.config.describe import options_of

    if line.prompts:
        table.add_row(Text("    prompts"), Text(f"presets of prompts: {', '.join(line.prompts)}", style="dim"))
    for option in options_of(line.options) if line.options is not None else ():
        default = "required" if option.default is None else f"default {option.default}"
        table.add_row(Text(f"    {option.key}"), Text(f"{option.doc} [{option.type}; {default}]", style="dim"))


def _opening(text: str) -> str:
    """The first sentence of the comment that a config opens with."""
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<=[.])\s", " ".join(comment), maxsplit=1)[0]

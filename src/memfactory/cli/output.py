"""How the command line speaks: errors and warnings on stderr, results on stdout."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from memfactory.cli.ranks import first_to_say, speaker
from memfactory.environment import process_rank
from memfactory.errors import ConfigError, MemFactoryError, unknown
from memfactory.redaction import redacted_message
from memfactory.terminal import harmless

if TYPE_CHECKING:
    from memfactory.config import Resolved
    from memfactory.console import Console


FILE_WIDTH = 160
"""Columns of what goes to a file or a pipe."""


def stdout() -> Console:
    """Where results go."""
    from memfactory.console import Console

    return Console(width=_width(sys.stdout))


def stderr() -> Console:
    """Where everything else goes."""
    from memfactory.console import Console

    return Console(stderr=True, width=_width(sys.stderr))


def _width(stream: TextIO | None) -> int | None:
    """The columns of what is printed to `stream`, which a process may lack; None: as rich finds it."""
    return None if _is_terminal(stream) or "COLUMNS" in os.environ else FILE_WIDTH


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that torchrun or `accelerate launch` started."""
    return process_rank() == 0


def start_logging() -> None:
    """Show warnings and notices of the package on stderr, one line each."""
    from rich.logging import RichHandler

    # The hub's own words about a machine without network; what cannot be fetched is told by whoever asked for it.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logger = logging.getLogger("memfactory")
    if not logger.handlers:
        terminal = _is_terminal(sys.stderr)
        handler: logging.Handler = _StderrHandler()
        if terminal:
            handler = RichHandler(console=stderr(), show_time=False, show_path=False, markup=False)
        handler.setFormatter(_SafeFormatter("%(message)s" if terminal else "%(levelname)s: %(message)s"))
        if not is_main_process():
            handler.addFilter(_said_by_no_other)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        logger.propagate = False


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is stderr when a message comes, not to what was when the first command began."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _said_by_no_other(record: logging.LogRecord) -> bool:
    """Whether no other process has said the same."""
    return first_to_say(record.getMessage())


class _SafeFormatter(logging.Formatter):
    """Messages, with their tracebacks, without secrets and control sequences; after its rank, if not the first's."""

    def format(self, record: logging.LogRecord) -> str:
        return message(("" if is_main_process() else speaker()) + super().format(record))


def message(text: str) -> str:
    """`text` as it may be shown: without secrets, and harmless to a terminal."""
    return harmless(redacted_message(text))


def echo(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Print `text`, which need not be ours, to stdout or stderr. Nothing else prints but the consoles above."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        stream.write(harmless(text) + end)
        stream.flush()


def complain(error: MemFactoryError) -> None:
    """Say what the user can mend: a panel on a terminal, plain lines elsewhere.

    Of several processes each says what it met, after its rank, and what all met is said once.
    """
    if not first_to_say(str(error)):
        return
    given = error.problems if isinstance(error, ConfigError) else (str(error),)
    problems = [message(speaker() + problem) for problem in given]
    title = "Error" if len(problems) == 1 else f"{len(problems)} problems"
    if not _is_terminal(sys.stderr):
        echo("\n".join(f"error: {problem}" for problem in problems), err=True)
        return
    from rich.panel import Panel
    from rich.text import Text

    stderr().print(Panel(Text("\n".join(problems)), title=title, title_align="left", border_style="red"))


def report_bug(error: Exception) -> None:
    """Say that something is wrong with MemFactory (or a plugin), with the traceback; of several processes, once."""
    told = f"{type(error).__name__}: {error}"
    if not first_to_say(told):
        return
    echo(message("".join(traceback.format_exception(error))), err=True, end="")
    echo(
        message(f"error: {speaker()}{told}") + "\nThis is a bug in MemFactory or in a plugin, not in your command. "
        "Please report it with the lines above and the output of `memfactory env`.",
        err=True,
    )


def typed(text: str, option: str) -> str:
    """What was typed behind `option`, read as UTF-8 whatever the locale is. ConfigError where it is none."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise ConfigError(f"{option} is not text in UTF-8") from None


def refuse_options(context: typer.Context, words: Sequence[str]) -> None:
    """Raise ConfigError for words that look like options: overrides are taken as they come, and a typo is neither."""
    known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    wrong = [word for word in words if word.startswith("-") and len(word) > 1 and "=" not in word]
    if wrong:
        from memfactory.config.key_places import keys_called

        problems = []
        for word in wrong:
            name = word.lstrip("-").replace("-", "_")
            key = name if "." in name else next(iter(keys_called(name)), None)
            hint = "An override is written KEY=VALUE." if key is None else f"An override is written {key}=VALUE."
            problems.append(f"{unknown('option', word, known)} {hint}")
        raise ConfigError(problems)


Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code that a run folder brings, and remember that you trust it.")
]


def load(source: str, overrides: list[str], command: str | None, *, trust: bool = False) -> Resolved:
    """The configuration for a command, its warnings shown."""
    from memfactory.config import load_config

    start_logging()
    return _with_warnings_shown(load_config(source, overrides, command=command, trust=trust))


def _with_warnings_shown(resolved: Resolved) -> Resolved:
    for warning in resolved.warnings:
        logging.getLogger("memfactory").warning("%s", warning)
    return resolved

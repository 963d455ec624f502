"""Output of the command line: errors and warnings on stderr, results on stdout."""

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

    _StreamHandler = logging.StreamHandler[TextIO]
else:
    # At run time the class takes no parameter before Python 3.11.
    _StreamHandler = logging.StreamHandler


FILE_WIDTH = 160
"""Columns of output to a file or a pipe."""


def stdout() -> Console:
    """The console of results."""
    from memfactory.console import Console

    return Console(width=_width(sys.stdout))


def stderr() -> Console:
    """The console of everything else."""
    from memfactory.console import Console

    return Console(stderr=True, width=_width(sys.stderr))


def _width(stream: TextIO | None) -> int | None:
    """The columns of output to `stream`, which a process may lack; None: rich measures the terminal."""
    return None if _is_terminal(stream) or "COLUMNS" in os.environ else FILE_WIDTH


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def is_main_process() -> bool:
    """Whether this process prints, of those that torchrun or `accelerate launch` started."""
    return process_rank() == 0


def start_logging() -> None:
    """Show warnings and notices of the package on stderr, one line each."""
    from rich.logging import RichHandler

    # Without network the hub prints messages of its own; our errors name the file that is missing.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logger = logging.getLogger("memfactory")
    if not logger.handlers:
        terminal = _is_terminal(sys.stderr)
        handler: logging.Handler = _StderrHandler()
        if terminal:
            handler = RichHandler(console=stderr(), show_time=False, show_path=False, markup=False)
        handler.setFormatter(_SafeFormatter("%(message)s" if terminal else "%(levelname)s: %(message)s"))
        if not is_main_process():
            handler.addFilter(_is_new)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        logger.propagate = False


class _StderrHandler(_StreamHandler):
    """Writes to the present stderr, not to the stderr of the first command."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _is_new(record: logging.LogRecord) -> bool:
    """Whether no other process has printed the same message."""
    return first_to_say(record.getMessage())


class _SafeFormatter(logging.Formatter):
    """Messages, with their tracebacks, without secrets and control sequences; after its rank, if not the first's."""

    def format(self, record: logging.LogRecord) -> str:
        return message(("" if is_main_process() else speaker()) + super().format(record))


def message(text: str) -> str:
    """`text` as it may be shown: without secrets, and harmless to a terminal."""
    return harmless(redacted_message(text))


def echo(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Print `text`, from any source, to stdout or stderr. Apart from this only the consoles above print."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        stream.write(harmless(text) + end)
        stream.flush()


def complain(error: MemFactoryError) -> None:
    """Print an error for the user: a panel on a terminal, plain lines elsewhere.

    With several processes each line begins with the rank, and an error of all processes is printed once.
    """
    if not first_to_say(str(error)):
        return
    messages = error.problems if isinstance(error, ConfigError) else (str(error),)
    problems = [message(speaker() + problem) for problem in messages]
    title = "Error" if len(problems) == 1 else f"{len(problems)} problems"
    if not _is_terminal(sys.stderr):
        echo("\n".join(f"error: {problem}" for problem in problems), err=True)
        return
    from rich.panel import Panel
    from rich.text import Text

    stderr().print(Panel(Text("\n".join(problems)), title=title, title_align="left", border_style="red"))


def report_bug(error: Exception) -> None:
    """Report a bug of MemFactory or of a plugin with its traceback; several processes report it once."""
    summary = f"{type(error).__name__}: {error}"
    if not first_to_say(summary):
        return
    echo(message("".join(traceback.format_exception(error))), err=True, end="")
    echo(
        message(f"error: {speaker()}{summary}") + "\nThis is a bug in MemFactory or in a plugin, not in your command. "
        "Please report it with the lines above and the output of `memfactory env`.",
        err=True,
    )


def typed(text: str, option: str) -> str:
    """The value of `option` as UTF-8, in any locale. Raises ConfigError for other bytes."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise ConfigError(f"{option} is not text in UTF-8") from None


def refuse_options(context: typer.Context, words: Sequence[str]) -> None:
    """Raise ConfigError for words that look like options but are none: typer takes them for overrides."""
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


Trust = Annotated[bool, typer.Option("--trust", help="Run the code in a run folder and remember it as trusted.")]


def load(source: str, overrides: list[str], command: str | None, *, trust: bool = False) -> Resolved:
    """The configuration for a command; its warnings are logged."""
    from memfactory.api.sources import resolved_config

    start_logging()
    return resolved_config(source, overrides, command, trust=trust)

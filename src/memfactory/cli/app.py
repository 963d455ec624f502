"""The `memfactory` command. Nothing heavy is imported before a command runs.

Exit codes: 0 done; 1 failed; 2 a mistake in the command line, the configuration or the data; 130 stopped by Ctrl-C (or
by another signal, in a training run that saved its last whole step); 129 and 143 stopped by SIGHUP and SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated

import typer

from memfactory.cli.configs import app as configs
from memfactory.cli.datasets import app as datasets
from memfactory.cli.environment import show_environment
from memfactory.cli.listing import list_components
from memfactory.cli.models import model
from memfactory.cli.output import complain, echo, message, report_bug
from memfactory.cli.runs import evaluate, infer, train, view
from memfactory.cli.words import is_override
from memfactory.errors import MemFactoryError
from memfactory.redaction import keep_environment_secrets
from memfactory.signals import Terminated, handled, terminate
from memfactory.terminal import guarded_streams

INTERRUPTED = 130
TEXTS = ("--question",)
"""Options with texts as values: `~` has no meaning in them."""
REFUSED_BY_THE_MACHINE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ESTALE,
    errno.EMFILE,
)
"""File errors of the machine or its folders, not of our code: a full disk, a folder in place of a file."""

app = typer.Typer(
    name="memfactory",
    help="Train, evaluate and run memory agents with reinforcement learning, from a YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", context_settings={"ignore_unknown_options": True})(train)
app.command("eval", context_settings={"ignore_unknown_options": True})(evaluate)
app.command("infer", context_settings={"ignore_unknown_options": True})(infer)
app.command("view")(view)
app.command("list")(list_components)
app.add_typer(configs, name="config")
datasets.command("model")(model)
app.add_typer(datasets, name="data")
app.command("env")(show_environment)


def _version(requested: bool) -> None:
    if requested:
        from importlib import metadata

        echo(f"memfactory {metadata.version('memfactory')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show a traceback for every error (also MEMFACTORY_DEBUG=1)."),
    ] = False,
) -> None:
    """Options of `memfactory` itself."""


def main() -> None:
    """Run the command that `sys.argv` holds and exit with its code."""
    sys.excepthook = show_exception
    sys.exit(run(sys.argv[1:]))


def show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback as Python shows it, without secrets and control sequences."""
    echo(message("".join(traceback.format_exception(kind, error, trace))), err=True, end="")


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    keep_environment_secrets()
    with guarded_streams(), handled(terminate, (signal.SIGTERM, signal.SIGHUP)):
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments or os.environ.get("MEMFACTORY_DEBUG", "0") not in ("", "0")
    words = _with_values(_at_home([word for word in arguments if word != "--debug"]))
    try:
        app(args=words, prog_name="memfactory")
    except SystemExit as stop:
        # Typer turns Ctrl-C into an exit; an exit with a message of its own has another cause.
        cause = getattr(stop.__context__, "__cause__", None)
        if isinstance(cause, Terminated):
            return _terminated(cause)
        if isinstance(cause, KeyboardInterrupt):
            echo("Stopped.", err=True)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except MemFactoryError as error:
        if debug:
            raise
        complain(error)
        return error.exit_code
    except Terminated as stopped:
        return _terminated(stopped)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if debug or error.errno not in REFUSED_BY_THE_MACHINE:
            report_bug(error)
            return 1
        complain(MemFactoryError(f"{error.filename or 'writing'}: {error.strerror}"))
        return MemFactoryError.exit_code
    except Exception as error:  # noqa: BLE001 - the last stop: an error that arrives here is our bug and reported as one
        report_bug(error)
        return 1
    return 0


def _at_home(words: Sequence[str]) -> list[str]:
    """The words with `~` expanded where shells leave it: in `--output=~/x` and in `--output '~/x'`.

    The config expands an override such as `output=~/x` itself, and a question is not a path.
    """
    expanded = []
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_path = value.startswith("~") and (name or before) not in TEXTS
        expanded.append(f"{name}{equals}{os.path.expanduser(value)}" if is_path else word)
    return expanded


def _terminated(stopped: Terminated) -> int:
    """Print the signal that stopped the command; the exit code that shells give for it."""
    echo(f"Stopped by {signal.Signals(stopped.number).name}.", err=True)
    return 128 + stopped.number


def _with_values(words: Sequence[str]) -> list[str]:
    """`--resume` without a value means `--resume=auto`."""
    completed = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        alone = not following or following.startswith("-") or is_override(following)
        completed.append("--resume=auto" if word == "--resume" and alone else word)
    return completed

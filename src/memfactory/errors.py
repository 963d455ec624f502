"""The errors that a user can fix: they are shown as messages, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def in_one_line(error: BaseException) -> str:
    """The text of another library's error in one line, at most 300 characters; its type if it has no text."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class MemFactoryError(Exception):
    """An error that the user can fix. Exit code 1.

    >>> MemFactoryError.exit_code, issubclass(ConfigError, MemFactoryError)
    (1, True)
    """

    exit_code = 1


class ProcessEndedError(MemFactoryError):
    """Another of the processes that run together has ended, so this one cannot go on. Its own error gives the
    reason."""


class ConfigError(MemFactoryError):
    """The configuration or the command line is wrong. `problems` holds every message. Exit code 2.

    >>> ConfigError(["train.stepz: unknown key", "data: is missing"]).problems
    ('train.stepz: unknown key', 'data: is missing')
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(MemFactoryError):
    """A data file or row cannot be used; the message has the file, the row number and the field. Exit code 2.

    >>> str(DataError("rows.jsonl line 3 has no question"))
    'rows.jsonl line 3 has no question'
    """

    exit_code = 2


class NoDemonstrationError(DataError):
    """A rule cannot write the reply to a request of a module for this task; the message says why."""


class PluginError(MemFactoryError):
    """A user's own component raised an error or returned a wrong value; the message names it, its file and line. Exit
    code 1.

    >>> PluginError.exit_code
    1
    """


class EngineError(MemFactoryError):
    """An engine or endpoint failed for good, after its retries. Exit code 1.

    >>> issubclass(PromptTooLong, EngineError)
    True
    """


class RequestRefused(EngineError):
    """An engine gives no reply to this one request, also after a retry; it replies to others."""


class PromptTooLong(RequestRefused):
    """A prompt leaves no room for a reply in the context of the model that is to answer it."""

    @classmethod
    def of(cls, tokens: int, context: int, remedy: str) -> PromptTooLong:
        """The error for a prompt of `tokens` tokens; `remedy` names a setting to change."""
        return cls(f"a prompt of {tokens} tokens leaves no room for a reply: the context is {context} tokens. {remedy}")


def nearest(name: str, existing: Iterable[str]) -> str | None:
    """The existing name most similar to `name`; None if none is similar."""
    near = difflib.get_close_matches(name, list(existing), n=1, cutoff=0.6)
    return near[0] if near else None


def unknown(kind: str, name: str, existing: Iterable[str]) -> str:
    """The sentence for a name that does not exist: the name, the nearest one, and all that exist."""
    names = sorted(existing)
    near = nearest(name, names)
    hint = f"; did you mean {near!r}?" if near else "."
    return f"no {kind} is called {name!r}{hint} There are: {', '.join(names) or '(none)'}."

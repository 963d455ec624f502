"""The boundary to users' own components: messages name the component, file and line of an error or a wrong result.

Errors of components that come with MemFactory are our bugs and stay tracebacks.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from memfactory.errors import MemFactoryError, PluginError
from memfactory.files.atomic import sha256_of
from memfactory.registry import ALL, Registry


def is_users(component: type) -> bool:
    """Whether a class is a registered component of a user's own."""
    return component.__module__.partition(".")[0] != "memfactory" and _registered_as(component) is not None


def code_digest(component: type) -> str | None:
    """The SHA-256 of the file of a user's own component, which identifies its behaviour; None for one of this
    package."""
    if not is_users(component):
        return None
    file = getattr(sys.modules.get(component.__module__), "__file__", None)
    try:
        return None if file is None else sha256_of(Path(file))
    except OSError:
        # The module name of an executed file contains the digest of its content.
        return component.__module__


def _registered_as(component: type) -> str | None:
    for registry in ALL:
        if registry.holds(component):
            return f"{registry.kind} {registry.name_of(component)!r}"
    return None


def _place(component: type) -> str:
    try:
        return f"{_shown(inspect.getsourcefile(component) or '?')}:{inspect.getsourcelines(component)[1]}"
    except (OSError, TypeError):
        return component.__module__


def _shown(file: str) -> str:
    path = Path(file)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def broken(component: type, part: str, message: str) -> PluginError:
    """The error for a component whose `part` (a method) breaks its contract."""
    method = getattr(component, part, None)
    where = component if method is None else method
    try:
        line = inspect.getsourcelines(where)[1]
        place = f"{_shown(inspect.getsourcefile(where) or '?')}:{line}"
    except (OSError, TypeError):
        place = _place(component)
    return PluginError(f"{_registered_as(component) or component.__name__} ({place}): `{part}` {message}")


@contextmanager
def guarded(
    *components: type, doing: str = "", making: bool = False, letting: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """An error that one of the users' `components` raises becomes a PluginError that names it, file and line; so
    does an exit, since a component ends no process.

    `doing` names the operation. An error that passes through none of their files is not theirs, unless a component is
    being made (`making`). MemFactoryErrors, and the errors in `letting`, pass unchanged.
    """
    try:
        yield
    except MemFactoryError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, letting):
            raise
        blamed = _blamed([component for component in components if is_users(component)], error, making)
        if blamed is None:
            raise
        component, place = blamed
        raised = _raised(error)
        operation = f" {doing}" if doing else ""
        text = f"{type(raised).__name__}: {raised}" if str(raised) else type(raised).__name__
        raise PluginError(
            f"{_registered_as(component)} failed{operation} at {place}: {text}\n(--debug shows the whole traceback)"
        ) from error


def _blamed(components: Sequence[type], error: BaseException, making: bool) -> tuple[type, str] | None:
    """The component that raised `error`, with file and line; None if no component did."""
    error = _raised(error)
    files = {inspect.getsourcefile(component): component for component in components}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return files[frame.filename], f"{_shown(frame.filename)}:{frame.lineno}"
    return (components[0], _place(components[0])) if making and components else None


def _raised(error: BaseException) -> BaseException:
    """The error that was raised first: Python replaces a StopIteration that leaves a generator by a RuntimeError
    without its lines."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, StopIteration) else error


def made(registry: Registry[Any], name: str, *arguments: object) -> Any:
    """The component called `name`, made from its arguments. Raises PluginError if a user's own cannot be made."""
    component = registry.get(name)
    with guarded(component, doing="when it was made", making=True):
        return component(*arguments)


def as_scalar(value: Any) -> float | None:
    """`value` as a float if it is one real, finite number: an int, a Fraction, a Decimal, a number of numpy or torch
    (of one element), or a truth value. None is unknown and stays None. Raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, str | bytes | complex):
        raise ValueError(f"{value!r} is not a number")
    try:
        number = float(value) if isinstance(value, Real) or not hasattr(value, "__len__") else _only_element(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(f"{short_repr(value)} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{short_repr(value)} is not finite; return None for an unknown score")
    return number


def _only_element(value: Any) -> float:
    """The number in a tensor or array without dimensions; a list of one number is a list."""
    if getattr(value, "shape", None) != ():
        raise ValueError
    return float(value)


def short_repr(value: object) -> str:
    """The type and the first 60 characters of a value that a message quotes."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def checked_scores(component: type, returned: Any, count: int, names: Sequence[str]) -> list[float | None]:
    """The scores that a reward returned for `count` episodes, as floats. Raises PluginError for another number of
    scores, for values that are not numbers and for numbers that are not finite. `names` are the tasks of the
    episodes."""
    if (
        isinstance(returned, str | bytes | dict)
        or not hasattr(returned, "__len__")
        or not hasattr(returned, "__iter__")
    ):
        raise broken(component, "score", f"returned {short_repr(returned)}, not a list with one score for each episode")
    if len(returned) != count:
        raise broken(component, "score", f"returned {len(returned)} scores for {count} episodes")
    scores = []
    for name, score in zip(names, returned, strict=True):
        try:
            scores.append(as_scalar(score))
        except ValueError as error:
            raise broken(component, "score", f"gave the task {name!r} a score that cannot be used: {error}") from None
    return scores

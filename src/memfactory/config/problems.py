"""The problems of a configuration: all of them, each with its origin, in the order of the lines."""

from __future__ import annotations

from collections.abc import Mapping

from memfactory.config.tree import KeyPath, Origin, dotted, origin_of
from memfactory.errors import ConfigError
from memfactory.redaction import is_secret, redacted_message


def shown(value: object) -> str:
    """A value as messages quote it: short, and never the value of a secret's key."""
    if isinstance(value, dict):
        inside = ", ".join(f"{key}: {'***' if is_secret(key) else shown(inner)}" for key, inner in value.items())
        text = f"{{{inside}}}"
    elif isinstance(value, list):
        text = f"[{', '.join(shown(inner) for inner in value)}]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    text = redacted_message(text)
    return text if len(text) <= 80 else text[:60] + "..."


MOST = 200
"""The most problems that are listed; the number of further ones follows."""


class Problems:
    """Collects problems by path; `origins` is the file and line of each path.

    A path that has a problem swallows later problems at, below and around it: they would be its consequences.
    """

    def __init__(self, origins: Mapping[KeyPath, Origin], source: str) -> None:
        self._origins = origins
        self._source = source
        self._messages: list[tuple[KeyPath, str]] = []
        self._sources: dict[KeyPath, KeyPath] = {}
        self._more = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    def moved(self, source: KeyPath, target: KeyPath) -> None:
        """The value at `target` of the resolved config was written at `source`, where its problems are reported."""
        self._sources[target] = source

    def add(self, path: KeyPath, message: str) -> None:
        """Add `message` about `path`."""
        if len(self._messages) == MOST:
            self._more += 1
            return
        at = self._as_written(path)
        if not (at and self.touch(at)):
            self._messages.append((at, message))

    def _as_written(self, path: KeyPath) -> KeyPath:
        for length in range(len(path), 0, -1):
            if path[:length] in self._sources:
                return (*self._sources[path[:length]], *path[length:])
        return path

    def touch(self, *paths: KeyPath) -> bool:
        """Whether a problem lies at, below or around one of `paths`."""
        return any(
            path[: len(other)] == other or other[: len(path)] == path for path in paths for other, _ in self._messages
        )

    def messages(self) -> list[str]:
        """Every problem as `file:line: dotted.key: message`, files in order and lines ascending."""

        def order(item: tuple[KeyPath, str]) -> tuple[str, int]:
            origin = origin_of(self._origins, item[0])
            return (origin.source, origin.line or 0) if origin else ("", 0)

        lines = [self._line(path, message) for path, message in sorted(self._messages, key=order)]
        return [*lines, *([f"{self._source}: and {self._more} more problems"] if self._more else [])]

    def raise_any(self) -> None:
        """Raise ConfigError with all problems, if there are any."""
        if self._messages:
            raise ConfigError(self.messages())

    def _line(self, path: KeyPath, message: str) -> str:
        return located(path, message, origin_of(self._origins, path) or Origin(self._source))


def located(path: KeyPath, message: str, origin: Origin) -> str:
    """`file:line: dotted.key: message`; an override that already shows the key does not repeat it."""
    key = dotted(path)
    override = origin.source.removeprefix("command line: ").partition("=")[0].lstrip("-")
    is_shown = key in ("", override, *(f"{override}.{inner}" for inner in ("name", "path", "kind")))
    return f"{origin}: {message}" if is_shown else f"{origin}: {key}: {message}"

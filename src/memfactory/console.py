"""The console for all output: rich's, with control sequences and secrets taken out of foreign texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment, Segments
from rich.text import Text

from memfactory.redaction import holds_secret, redacted
from memfactory.terminal import discard, harmless


class Console(rich.console.Console):
    """A rich console whose texts cannot hold control sequences of their own; rich's own (colours, bars) stay.

    >>> Console(width=40).print("\\x1b]0;title\\x07 done", markup=False)
    \\u001b]0;title\\u0007 done
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None, **options: Any) -> None:
        # `:name:` in a model's text is not an emoji, and `[bold]` is not a style.
        super().__init__(stderr=stderr, width=width, emoji=False, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print with secrets and control sequences removed."""
        # Before lines are broken: half a key on each of two lines would not be found.
        super().print(*map(_without_secrets, objects), **options)

    def print_rows(self, tables: RenderableType) -> None:
        """Print tables without borders. No line ends in blanks, which rich pads every cell with."""
        lines = [[*_without_blank_end(line), Segment.line()] for line in self.render_lines(tables, pad=False)]
        self.print(Segments(segment for line in lines for segment in line), end="")

    def on_broken_pipe(self) -> None:
        """Nobody reads any more (`| head`): later output is dropped, and work goes on."""
        self.quiet = True
        discard(self.file)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with control sequences in texts escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


def _without_blank_end(line: list[Segment]) -> list[Segment]:
    segments = list(line)
    while segments:
        last = segments.pop()
        if text := last.text.rstrip(" "):
            return [*segments, Segment(text, last.style)]
    return []


def _without_secrets(value: object) -> object:
    if isinstance(value, str):
        return harmless(redacted(value))
    if isinstance(value, Text) and holds_secret(value.plain):
        return Text(redacted(value.plain), style=value.style)
    return value

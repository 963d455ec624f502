"""Prints the events of an inference: answers on stdout, everything else on stderr."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from memfactory.console import Console
from memfactory.episode import Episode
from memfactory.evaluation.episodes import OnProgress
from memfactory.evaluation.memory_view import MemoryView
from memfactory.evaluation.progress import progress_display
from memfactory.files.json_lines import json_line
from memfactory.inference import Answer, InferResult, InferWatcher
from memfactory.types import Turn


class AnswerPrinter(InferWatcher):
    """Prints answers as text (`as_text`) or as JSON lines, unless they go to a file (`console` None).

    The memory (`show_memory`) or the progress, rows that cannot be used and failures go to stderr.
    """

    def __init__(self, console: Console | None, *, as_text: bool, show_memory: bool) -> None:
        self._console = console
        self._as_text = as_text
        self._show_memory = show_memory
        self._errors = Console(stderr=True)
        self._open = ExitStack()
        self._progress: OnProgress | None = None
        self._memory: MemoryView | None = None

    def __enter__(self) -> AnswerPrinter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def left_out(self, problem: str) -> None:
        self._tell(f"left out: {problem}", "red")

    def started(self, total: int) -> None:
        if self._show_memory:
            self._memory = MemoryView(self._errors, named=total > 1)
        elif total > 1:
            self._progress = self._open.enter_context(progress_display(self._errors, "answering"))

    def turn(self, episode: Episode, turn: Turn) -> None:
        if self._memory is not None:
            self._memory.show(episode, turn)

    def progressed(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)

    def answered(self, answer: Answer) -> None:
        if self._console is not None:
            text = f"{answer}\n" if self._as_text else json_line(dict(answer.record))
            self._console.out(text, end="", highlight=False)

    def failed(self, task_id: str, reason: str) -> None:
        self._tell(f"not answered: {task_id}: {reason}", "red")

    def finished(self, result: InferResult, output: Path | None) -> int:
        """Print the notes and the counts; the exit code, 1 if a row has no answer."""
        self._open.close()
        for note in result.notes:
            self._tell(note, "yellow")
        if output is not None:
            self._tell(f"{output}: {len(result.answers)} answers written, {result.answered_before} were there", None)
        return 0 if result.complete else 1

    def _tell(self, text: str, style: str | None) -> None:
        self._errors.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

"""Findings of a check of a GPU: a value, the range that it should lie in, and a verdict. It needs no torch."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "off", "failed", "skipped", "noted"]
Value = float | int | str | None
BAD = ("off", "failed")
# Lines of a traceback that a finding carries: enough to see the place.
TRACE_LINES = 12


@dataclass(frozen=True)
class Expected:
    """A range with both bounds in it; None: no bound on that side."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` is in the range; NaN is in none."""
        return value == value and (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is not None and self.low == self.high:
            return f"{self.low:g}"
        if self.low is None:
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Finding:
    """One row of the table. `noted` values have no expectation; `failed` and `skipped` rows say why in `note`."""

    section: str
    name: str
    verdict: Verdict
    value: Value = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def expected(self) -> str:
        """The range in words; empty without one."""
        return "" if self.low is None and self.high is None else str(Expected(self.low, self.high))

    @property
    def measured(self) -> str:
        """The value with its unit."""
        shown = "" if self.value is None else f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        return f"{shown} {self.unit}".strip()


class Report:
    """Collects the findings of one section, each a line of `file` as soon as it is known: a crash loses none."""

    def __init__(self, section: str, file: Path) -> None:
        self.section, self.file = section, file

    def add(self, finding: Finding) -> None:
        """Write one finding."""
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(finding)) + "\n")

    def measured(
        self, name: str, value: float, unit: str = "", expected: Expected | None = None, note: str = ""
    ) -> None:
        """A number, with its range if it has one. One that is not finite is a text, since JSON has no such numbers."""
        shown: Value = value if math.isfinite(value) else str(value)
        if expected is None:
            self.add(Finding(self.section, name, "noted", shown, unit, note=note))
            return
        verdict: Verdict = "ok" if expected.holds(value) else "off"
        self.add(Finding(self.section, name, verdict, shown, unit, expected.low, expected.high, note))

    def noted(self, name: str, value: str, note: str = "") -> None:
        """A text that nothing is expected of."""
        self.add(Finding(self.section, name, "noted", value, note=note))

    def judged(self, name: str, good: bool, value: str, note: str = "") -> None:
        """A text that is either right or wrong."""
        self.add(Finding(self.section, name, "ok" if good else "failed", value, note=note))

    def skipped(self, name: str, reason: str) -> None:
        """Something that was left out."""
        self.add(Finding(self.section, name, "skipped", note=reason))

    def failed(self, name: str, reason: str) -> None:
        """Something that ended in an error."""
        self.add(Finding(self.section, name, "failed", note=reason))

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Within it an error is a failed finding called `name`, and the next measurement goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - reported as a finding; the other measurements are worth as much
            place = "\n".join(traceback.format_exc().splitlines()[-TRACE_LINES:])
            self.failed(name, f"{type(error).__name__}: {error}\n{place}")


def read_findings(file: Path) -> list[Finding]:
    """The findings in `file`; a last line that was cut by a crash is left out."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Finding(**json.loads(line)) for line in lines if line.endswith("\n")]


def exit_code(findings: list[Finding]) -> int:
    """0: all in range; 1: something is off or failed; 3: nothing is, but something was skipped."""
    verdicts = {finding.verdict for finding in findings}
    if verdicts & {*BAD}:
        return 1
    return 3 if "skipped" in verdicts else 0

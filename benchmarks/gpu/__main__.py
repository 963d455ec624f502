"""Runs one section of `scripts/check_gpu.py`: python -m benchmarks.gpu SECTION --findings FILE --seconds N."""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Report
from benchmarks.gpu.sections import SECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=[section.name for section in SECTIONS])
    parser.add_argument("--findings", type=Path, required=True, help="the file that findings are added to")
    parser.add_argument("--seconds", type=float, required=True, help="when the section will be stopped")
    parser.add_argument("--small", action="store_true", help="in miniature on a CPU")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    report = Report(args.section, args.findings)
    with report.guarded("the section"), tempfile.TemporaryDirectory() as folder:
        module = importlib.import_module(f"benchmarks.gpu.{args.section}")
        module.run(Check(report, Path(folder), args.small, deadline))


if __name__ == "__main__":
    main()

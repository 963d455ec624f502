"""Ten minutes on one GPU: does the toolkit compute rightly there, and as fast and small as its plans say?

python scripts/check_gpu.py [--minutes 9] [--only SECTION ...] [--out check_gpu.json] [--small]

Sections run in the order of their worth, each in a process of its own, so that a crash ends one section alone; those
that do not fit into the minutes are skipped. Models have random weights or are `tiny`: nothing is downloaded. The exit
code is 0 if every finding is as expected, 1 if something is off or failed, 3 if something was skipped, 2 for a mistake
in the command or a machine without a GPU. `--small` runs miniatures on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.gpu.findings import Finding, exit_code, read_findings  # noqa: E402
from benchmarks.gpu.sections import SECTIONS, Section  # noqa: E402

NAMES = [section.name for section in SECTIONS]
COLUMNS = f"{'section':10} {'finding':66} {'measured':>20} {'expected':>16}  verdict"
# A section that takes longer than this many times its seconds hangs.
SLACK = 2.0
# A section in less than this fraction of its seconds is not worth its start.
LEAST = 0.5
NOTE_LINES = 4


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="SECTION", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=Path("check_gpu.json"), help="the file for all findings")
    parser.add_argument("--small", action="store_true", help="miniatures on a CPU, to try the script itself")
    args = parser.parse_args(words)
    if not args.minutes > 0:
        parser.error(f"--minutes needs more than 0, got {args.minutes:g}")
    if not args.out.absolute().parent.is_dir():
        parser.error(f"--out: there is no folder {args.out.absolute().parent}")
    problem = None if args.small else lacking_gpu()
    if problem is not None:
        parser.error(problem)
    return check(args)


def lacking_gpu() -> str | None:
    """Why there is no GPU to check; None: there is one."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error}); docs/install.md says how to install the toolkit"
    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} sees no CUDA GPU; --small runs miniatures on a CPU"


def check(args: argparse.Namespace) -> int:
    """Run the sections, print the table, write the file, and return the exit code."""
    begun, findings, seconds = time.monotonic(), list[Finding](), dict[str, float]()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    print(COLUMNS, "-" * len(COLUMNS), sep="\n")
    for section in SECTIONS:
        if args.only and section.name not in args.only:
            continue
        left = args.minutes * 60 - (time.monotonic() - begun)
        since = time.monotonic()
        own = run_section(section, left, small=args.small)
        seconds[section.name] = round(time.monotonic() - since, 1)
        findings += own
        print("\n".join(map(row, own)), flush=True)
        # After every section: who stops the script keeps the sections before.
        whole = {"started": started, "minutes": args.minutes, "small": args.small, "seconds": seconds}
        whole |= {"exit_code": exit_code(findings), "findings": [asdict(finding) for finding in findings]}
        args.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    counts = Counter(finding.verdict for finding in findings)
    shown = ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common())
    print(f"\n{shown}; {time.monotonic() - begun:.0f} s; all findings are in {args.out}")
    return exit_code(findings)


def run_section(section: Section, left: float, *, small: bool) -> list[Finding]:
    """The findings of a section that runs in a process of its own while time is left."""
    if left < LEAST * (1 if small else section.seconds):
        reason = f"it takes about {section.seconds:.0f} s, and {max(left, 0):.0f} s are left"
        return [Finding(section.name, section.title, "skipped", note=reason)]
    limit = left if small else min(left, SLACK * section.seconds)
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "findings.jsonl", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "benchmarks.gpu", section.name, "--findings", str(file)]
        command += ["--seconds", f"{limit:.0f}", *(["--small"] if small else [])]
        problem = run_process(command, limit, log)
        findings = read_findings(file)
        if problem is not None or not findings:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            note = "\n".join([problem or "it reported nothing", *last])
            findings.append(Finding(section.name, section.title, "failed", note=note))
    return findings


def run_process(command: Sequence[str], limit: float, log: Path) -> str | None:
    """Run a command with its output in `log`, for at most `limit` seconds; how it failed, or None."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "src"), before)))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as output:
        # A session of its own: processes that it starts end with it.
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"it was stopped after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return None if code == 0 else f"its process ended with code {code}"


def row(finding: Finding) -> str:
    """One line of the table; under those that are off, failed or skipped their note."""
    measured, expected = finding.measured[:60], finding.expected
    line = f"{finding.section:10} {finding.name:66} {measured:>20} {expected:>16}  {finding.verdict}"
    if not finding.note or finding.verdict == "ok":
        return line
    notes = finding.note.splitlines()
    return "\n".join([line, *(f"{'':13}{note}" for note in [notes[0], *notes[1:][-NOTE_LINES:]])])


if __name__ == "__main__":
    sys.exit(main())

"""`scripts/check_gpu.py` in miniature: sections give findings, wrong results are seen, and no section ends another."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

import scripts.check_gpu as check_gpu
from benchmarks.gpu import attention, decoding, machine, tiny, training, whole_step
from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Expected, Finding, Report, exit_code, read_findings
from benchmarks.gpu.sections import SECTIONS, Section

SECTION_MODULES = [machine, attention, tiny, decoding, training, whole_step]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(Report("section", tmp_path / "findings.jsonl"), tmp_path, small=True, deadline=time.monotonic() + 300)


def findings_of(check: Check) -> dict[str, Finding]:
    findings = read_findings(check.report.file)
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


@pytest.mark.parametrize("module", SECTION_MODULES, ids=lambda module: module.__name__)
def test_a_section_in_miniature_is_as_expected(check: Check, module):
    module.run(check)
    findings = findings_of(check)
    assert [finding for finding in findings.values() if finding.verdict not in ("ok", "noted")] == []
    assert len(findings) >= 4


def test_a_wrong_kernel_is_off(check: Check, monkeypatch: pytest.MonkeyPatch):
    right = attention.attend_block

    def wrong(query, key, value, scale, causal=False):
        output, weight, state = right(query, key, value, scale, causal)
        return output * 1.02, weight + 0.1, state

    monkeypatch.setattr(attention, "attend_block", wrong)
    attention.run(check)
    blocks = {name: one.verdict for name, one in findings_of(check).items() if name.startswith("a block")}
    assert len(blocks) == 4 and set(blocks.values()) == {"off"}


def test_an_error_ends_one_measurement_alone(check: Check, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> float:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(machine, "matmul_peak", broken)
    machine.run(check)
    findings = findings_of(check)
    assert findings["matrix products"].verdict == "failed" and "no such kernel" in findings["matrix products"].note
    assert findings["copies"].verdict == "noted" and "launch" in findings


def test_a_range_has_its_bounds_and_no_nan():
    assert Expected(1, 2).holds(1) and Expected(1, 2).holds(2) and not Expected(1, 2).holds(2.1)
    assert not Expected(high=1).holds(float("nan")) and Expected(low=3).holds(4)
    assert [str(one) for one in (Expected(1, 2), Expected(high=2), Expected(low=1), Expected(1, 1))] == [
        "1 to 2",
        "<= 2",
        ">= 1",
        "1",
    ]


def test_a_number_that_is_not_finite_is_off_and_valid_json(check: Check):
    check.report.measured("KL", float("nan"), "nats", Expected(-1, 1))
    (finding,) = findings_of(check).values()
    assert (finding.verdict, finding.value, finding.measured) == ("off", "nan", "nan nats")


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["ok", "noted"], 0), (["ok", "off"], 1), (["failed", "skipped"], 1), (["skipped", "ok"], 3)],
)
def test_the_exit_code_is_that_of_the_worst_finding(verdicts, code):
    assert exit_code([Finding("section", "name", verdict) for verdict in verdicts]) == code


def test_a_line_cut_by_a_crash_loses_no_other(check: Check):
    check.report.measured("one", 1.0)
    with check.report.file.open("a") as file:
        file.write('{"section": "section", "na')
    assert list(findings_of(check)) == ["one"]


def test_a_process_that_crashes_or_hangs_says_so(tmp_path: Path):
    log = tmp_path / "log.txt"
    assert check_gpu.run_process([sys.executable, "-c", "import os; os.abort()"], 20, log) is not None
    begun = time.monotonic()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert check_gpu.run_process(command, 1, log) == "it was stopped after 1 s"
    assert time.monotonic() - begun < 30
    assert check_gpu.run_process([sys.executable, "-c", "print('fine')"], 20, log) is None
    assert log.read_text() == "fine\n"


def test_a_section_without_time_is_skipped():
    (finding,) = check_gpu.run_section(Section("tiny", 100, "trainings"), 40, small=False)
    assert finding.verdict == "skipped" and finding.note == "it takes about 100 s, and 40 s are left"


def test_the_script_prints_a_table_and_writes_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    assert check_gpu.main(["--small", "--only", "machine", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["exit_code"] == 0 and [one["section"] for one in written["findings"]] == ["machine"] * 5
    assert "matrix products" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "--minutes needs more than 0, got 0"),
        (["--out", "nowhere/at/all.json"], "--out: there is no folder"),
        (["--only", "moon"], "invalid choice: 'moon'"),
    ],
)
def test_a_mistake_in_the_command_is_named(words, message, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        check_gpu.main(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        check_gpu.main([])
    assert stopped.value.code == 2 and "sees no CUDA GPU; --small" in capsys.readouterr().err


def test_the_page_has_every_section():
    page = (check_gpu.ROOT / "docs" / "benchmarks" / "gpu.md").read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f"| `{section.name}` | {section.seconds:g} |" in page

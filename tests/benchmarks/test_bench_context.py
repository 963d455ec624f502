"""The benchmark of long texts: it reads them with the product's engine and agent, and draws what it measured."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import context


@pytest.fixture
def bench():
    return context


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the highest memory since now is told by Linux")
def test_a_text_is_read_chunk_by_chunk_by_the_products_own_engine(bench):
    given = Namespace(model=None, chunk_tokens=200, memory_tokens=4, threads=1, set=[])
    reading = bench.measured(1000, given)
    # Whole lines of about 35 tokens, five of them shorter: six sections of 200, an answer.
    assert 1000 < reading.tokens < 1100
    assert reading.asks == 6 + 1
    assert reading.reply_tokens == 6 * 4 + 16
    assert 200 < reading.longest_prompt < 300
    assert reading.tokens < reading.prompt_tokens < reading.tokens + 7 * 100
    assert reading.seconds > 0 and reading.peak_mb > 0


def test_what_was_measured_is_told_and_drawn_again(bench, tmp_path, monkeypatch, capsys):
    readings = [
        bench.Reading(4000 * n, n, 2600, 4400 * n, 64 * n, 2.0 * n, 2.1 * n, 0.1 * n, 0.02 * n, 90.0)
        for n in (1, 4, 16)
    ]
    report, picture = tmp_path / "report.json", tmp_path / "images" / "context.png"
    report.write_text(json.dumps({"readings": [asdict(one) for one in readings]}))
    monkeypatch.setattr(sys, "argv", ["benchmarks/context.py", "--measured", str(report), "--picture", str(picture)])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| 4,000 | 1 | 2,600 | 4,464 | 2.0 | 0.500 |") and len(lines) == 5
    assert picture.read_bytes().startswith(b"\x89PNG")

"""The page docs/extending.md, executed: its files are written to a folder and its config is trained."""

import json
import subprocess
import sys
from pathlib import Path

from snippets import files_of, write_files

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_page_on_extending_trains_a_step(tmp_path):
    write_files(PAGE, tmp_path)
    command = [sys.executable, "-m", "memfactory", "train", "my_run.yaml", "--output", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1]
    assert 0 <= metrics[0]["reward/brevity"] <= 1
    assert (tmp_path / "run" / "final" / "config.json").is_file()
    transcript = next((tmp_path / "run" / "transcripts").glob("*.jsonl")).read_text()
    assert "Ada lives in Oslo." in transcript or "Boris lives in Rome." in transcript


def test_the_mistake_on_the_page_is_told_as_the_page_says(tmp_path):
    for name, text in files_of(PAGE).items():
        (tmp_path / name).write_text(text.replace("window: 120", "windw: 120"), encoding="utf-8")
    command = [sys.executable, "-m", "memfactory", "config", "validate", "my_run.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    told = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert "agent.windw: unknown key; did you mean 'window'?" in told
    assert "my_run.yaml:3" in told
    assert "Traceback" not in told

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


def test_the_mistake_of_the_page_gives_its_message(tmp_path):
    for name, text in files_of(PAGE).items():
        (tmp_path / name).write_text(text.replace("window: 120", "windw: 120"), encoding="utf-8")
    command = [sys.executable, "-m", "memfactory", "config", "validate", "my_run.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    output = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert "agent.windw: unknown key; did you mean 'window'?" in output
    assert "my_run.yaml:3" in output
    assert "Traceback" not in output


def test_the_trainer_of_the_page_is_listed_planned_and_trains(tmp_path):
    write_files(PAGE, tmp_path)
    outputs = []
    for words in (["list", "trainers", "--config"], ["train", "--dry-run"], ["train", "--output", "run"]):
        command = [sys.executable, "-m", "memfactory", words[0], *words[1:], "trainer_run.yaml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "best_of" in outputs[0] and "episodes per step" in outputs[1]
    assert (tmp_path / "run" / "final" / "config.json").is_file()


def test_the_dataset_of_the_page_reads_its_file(tmp_path):
    write_files(PAGE, tmp_path)
    command = [sys.executable, "-m", "memfactory", "train", "csv_run.yaml", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_metrics_of_a_run_are_read_as_the_page_says(tmp_path):
    write_files(PAGE, tmp_path)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.25}\n', encoding="utf-8")
    done = subprocess.run([sys.executable, "read_metrics.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "0.25"]

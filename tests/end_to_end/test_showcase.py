"""The showcase in miniature: demonstrations, cold start, RL, transcripts and table with the embedded model."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import scripts.showcase as showcase
from memfactory.config import load_config
from memfactory.evaluation.results import DatasetResult, MetricResult

ROOT = Path(__file__).parents[2]
SMALL = (
    "agent.chunk_tokens=400",
    "agent.memory_tokens=24",
    "agent.answer_tokens=6",
    "train.steps=2",
    "train.eval_every=0",
    "eval.limit=3",
    "eval.samples=2",
    "model.cpu_threads=1",
)
RL = ("train.prompts_per_step=2", "train.group_size=2")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A showcase on `tiny` whose text is a page of this project, with two questions a step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "factbook.md").write_text((ROOT / "docs" / "training.md").read_text().replace("## ", "# "))
    rung = showcase.Rung("smollm2_facts", "smollm2_facts_sft", ("--rows", "8"))
    return showcase.Showcase(rung, 3, Path("out"), "tiny", SMALL, RL)


def test_the_whole_chain_runs_and_a_second_call_finds_it_done(small, capfd):
    showcase.run_stages(small)
    table, shown = showcase.results(small).table(), showcase.transcripts(small.folder)
    lines = table.splitlines()
    assert lines[0].startswith("| model | em | difference | 95 % interval | f1 |")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["as published", "after the cold start", "after GRPO"]
    assert shown.count("## ") == showcase.QUESTIONS and shown.count("| note 1 |") == showcase.QUESTIONS
    assert "| answer |" in shown and "Evidence in the text: *" in shown
    rows = [json.loads(line) for line in (small.folder / "traces.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} >= {"taken", "answer"}
    times = showcase.read_times(small.folder)
    assert set(times) == {stage.name for stage in small.stages()} - {"text"}
    assert all(used["cpu_seconds"] > 0 for used in times.values())
    capfd.readouterr()
    showcase.run_stages(small)
    assert capfd.readouterr().out.count("done before") == len(small.stages())
    assert showcase.read_times(small.folder) == times


def test_other_arguments_than_those_of_the_folder_are_refused(small, monkeypatch):
    monkeypatch.setattr(showcase.Showcase, "stages", lambda self: [])
    showcase.run_stages(small)
    showcase.run_stages(small)
    for other in (replace(small, overrides=()), replace(small, rl_overrides=())):
        with pytest.raises(SystemExit, match=r"out was begun with other arguments .*group_size=2.*; repeat"):
            showcase.run_stages(other)


def test_a_wrong_override_of_rl_is_told_before_the_first_stage(small):
    with pytest.raises(SystemExit, match=r"error: command line: train\.stps=3: unknown key; did you mean 'steps'"):
        showcase.run_stages(replace(small, rl_overrides=("train.stps=3",)))
    assert not small.folder.exists()


def test_an_output_that_is_a_file_is_refused(small):
    Path("out").write_text("")
    with pytest.raises(SystemExit, match="error: out should be a folder to write into, but is a file"):
        showcase.run_stages(small)


def test_a_stopped_stage_is_resumed_and_its_time_added(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    stage = showcase.Stage("cold start", tmp_path / "final", ("train", "x.yaml"), tmp_path / "run")
    assert stage.command == ["train", "x.yaml"]
    (tmp_path / "run").mkdir()
    assert stage.command == ["train", "x.yaml", "--resume", str(tmp_path / "run")]
    made = showcase.Showcase(showcase.RUNGS["1"], 0, tmp_path / "out")
    monkeypatch.setattr(showcase.Showcase, "stages", lambda self: [stage])
    for _ in range(2):
        with pytest.raises(SystemExit, match="cold start ended with exit code 1; the same command goes on from here"):
            showcase.run_stages(made)
    assert showcase.read_times(tmp_path / "out")["cold start"]["seconds"] > 0


def result(*scores):
    mean = sum(scores) / len(scores)
    metrics = {"em": MetricResult(mean, 0.25, len(scores), 1, 0, {1: mean})}
    by_question = {"em": {str(number): score for number, score in enumerate(scores)}}
    return DatasetResult(metrics, len(scores), 1, 0.0, "hash", by_question)


def test_the_table_has_paired_differences_from_the_row_above():
    made = showcase.Results({"a": result(0.0, 0.0, 0.0, 1.0), "b": result(1.0, 1.0, 0.0, 1.0)})
    # Differences 1, 1, 0, 0: mean 0.5, standard error sqrt((4 x 0.25 / 3) / 4) = 0.2887; Student's t of 3 degrees of
    # freedom is 3.182, so the interval is 0.5 +- 0.919, cut at 1.
    assert made.table().splitlines()[2:] == [
        "| a | 0.250 ± 0.250 |  |  |",
        "| b | 0.750 ± 0.250 | +0.500 | -0.419 to +1.000 |",
    ]


def test_the_rungs_of_one_cold_start_evaluate_it_on_their_own_questions(tmp_path):
    def words(rung):
        stages = showcase.Showcase(showcase.RUNGS[rung], 0, tmp_path).stages()
        return next(stage.words for stage in stages if stage.name == "cold start")

    assert not any(word.startswith("data.eval") for word in words("1"))
    (override,) = [word for word in words("hard") if word.startswith("data.eval.held_out=")]
    options = json.loads(override.partition("=")[2])
    assert (options["name"], options["paragraphs"], options["corrections"]) == ("facts_in_text", 4, 0.5)


def words_of(made, name):
    return next(stage.words for stage in made.stages() if stage.name == name)


def test_a_file_of_ones_own_counts_for_every_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my squad.json"
    file.write_text("{}")
    seen = []
    monkeypatch.setattr(showcase, "run_stages", lambda made: seen.append(made) or sys.exit(0))
    with pytest.raises(SystemExit):
        showcase.main(["--rung", "2", "--data", str(file), "--model", "tiny", "data.train.distractors=2"])
    (made,) = seen
    showcase.check(made)
    train, held_out = (f'data.{key}.path="{file}"' for key in ("train", "eval.held_out"))
    for name in ("demonstrations", "reinforcement learning"):
        assert {train, held_out, "data.train.distractors=2"} <= {*words_of(made, name)}
    words = words_of(made, "cold start")
    assert f"data.train={made.folder / 'traces.jsonl'}" in words and held_out in words
    assert train not in words and "data.train.distractors=2" not in words
    overrides = [word for word in words[2:] if not word.startswith("output=")]
    values = load_config(showcase.ROOT / "configs" / "smollm2_squad_sft.yaml", overrides).values
    assert values["data"]["eval"]["held_out"]["path"] == str(file)
    assert values["data"]["train"]["path"] == str(made.folder / "traces.jsonl")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--rung", "2", "data.train.path=x.json"],
            r"error: data\.train\.path .* write --data FILE for all .* --rl data",
        ),
        (["--rung", "1", "--data", "x.json"], "error: --data is for the rungs 2 and 3; rung 1 makes its own questions"),
        (["--rung", "3", "--data", "none.json"], r"error: --data none\.json: there is no such file"),
    ],
)
def test_a_file_that_cannot_count_for_every_stage_is_refused(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=told):
        showcase.main([*words, "--model", "tiny"])
    assert not list(tmp_path.iterdir())


def test_the_target_of_make_installs_what_the_model_needs():
    # The tests themselves may run below `make test`, which would print the folder that it enters.
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = subprocess.run(
        ["make", "-n", "showcase"], cwd=showcase.ROOT, env=own, capture_output=True, text=True, check=True
    )
    install, run = shown.stdout.splitlines()
    assert install == "scripts/install.sh gguf" and "scripts/showcase.py --rung 1 --seed 0" in run


def test_results_on_other_questions_are_not_compared():
    other = replace(result(1.0, 1.0), data_hash="another")
    assert showcase.Results({"a": result(0.0, 0.0), "b": other}).table().splitlines()[-1] == (
        "| b | 1.000 ± 0.250 |  |  |"
    )


def test_a_rung_without_configs_is_refused(monkeypatch):
    monkeypatch.setitem(showcase.RUNGS, "1", showcase.Rung("no_such", "no_such_sft", ()))
    with pytest.raises(SystemExit, match="rung 1: there is no config no_such, no_such_sft"):
        showcase.main(["--rung", "1"])

"""The command line: what it says, where, and with which exit code."""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from memfactory.cli.app import _with_values, run
from memfactory.cli.runs import _without_resume
from memfactory.errors import EngineError

BARE = SimpleNamespace(run=None, warnings=(), choices=())
BASE = "model: tiny\nagent: memory_agent\nenv: longcontext\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("MEMFACTORY_DEBUG", raising=False)
    return tmp_path


def command(*words, **variables):
    """A real process."""
    return subprocess.run(
        [sys.executable, "-m", "memfactory", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "300", **variables},
    )


def test_help_is_quick():
    # Seconds of computing, not on the clock: other processes may want the machine too.
    least = 60.0
    for _ in range(3):
        before = os.times()
        assert command("--help").returncode == 0
        after = os.times()
        spent = after.children_user - before.children_user + after.children_system - before.children_system
        least = min(least, spent)
    assert least < 1.0


def test_a_mistake_is_exit_code_2_on_stderr_without_a_traceback(folder):
    (folder / "x.yaml").write_text(BASE + "train: {name: grpo, stps: 3}\nsede: 1\n")
    done = command("train", "x.yaml", "model.pth=tiny")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[0].startswith(
        "error: command line: model.pth=tiny: unknown key; did you mean 'path'?"
    )
    assert "error: x.yaml:4: train.stps: unknown key; did you mean 'steps'?" in done.stderr
    assert "error: x.yaml:5: sede: unknown key; did you mean 'seed'?" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train"], "Missing argument"),
        (["train", "nowhere.yaml"], "there is no such config file, run folder or model folder"),
        (["train", "x.yaml", "--resme"], "no option is called '--resme'; did you mean '--resume'?"),
        (["train", "x.yaml", "--steps", "3"], "An override is written train.steps=VALUE."),
        (["list", "modles"], "no kind of component is called 'modles'; did you mean 'modules'?"),
        (["eval", "x.yaml", "--samples", "0"], "Invalid value for '--samples'"),
        (["config", "validate", "x.yaml", "--for", "training"], "'training' is none of train, eval, infer"),
        (["data", "export", "fact", "--output", "a.json"], "no dataset is called 'fact'; did you mean 'facts'?"),
        (["data", "export", "facts", "rows.x=2", "--output", "a.json"], "rows.x=2: write the whole of 'rows'"),
        (["data", "export", "facts", "--output", "a.txt"], "expected a file that ends in .json, .jsonl, .parquet"),
        (["data", "hotpotqa", "a.json", "--train-docs", "few"], "expected a number or a range such as 50-80"),
        (["infer", "x.yaml"], "nothing to answer: give --question"),
        (["view", "."], "is neither a run folder"),
    ],
)
def test_every_wrong_word_is_exit_code_2(folder, capsys, words, said):
    (folder / "x.yaml").write_text(BASE)
    assert run(words) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in shown
    assert "Traceback" not in shown


def test_debug_shows_where_an_error_comes_from(folder):
    done = command("config", "validate", "nowhere.yaml", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Traceback" in command("config", "validate", "nowhere.yaml", MEMFACTORY_DEBUG="1").stderr


def test_a_bug_is_exit_code_1_with_a_traceback_and_where_to_report_it(folder, capsys, monkeypatch):
    def fail(*given, **named):
        return 1 / 0

    monkeypatch.setattr("memfactory.cli.configs.load", fail)
    assert run(["config", "validate", "x.yaml"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown and "Traceback" in shown and "memfactory env" in shown


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_no_bug(folder, capsys, monkeypatch, number):
    def fail(sources, overrides, **_):
        raise OSError(number, os.strerror(number), "results.json")

    monkeypatch.setattr("memfactory.api.evaluation.load_side_by_side", fail)
    assert run(["eval", "tiny"]) == 1
    assert capsys.readouterr().err == f"error: results.json: {os.strerror(number)}\n"


def test_a_page_that_cannot_be_written_is_told(folder, capsys):
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (folder / "file").write_text("")
    assert run(["view", ".", "--output", "file/page.html"]) == 2
    assert capsys.readouterr().err == "error: --output file/page.html cannot be written: File exists\n"


def test_ctrl_c_is_told_in_a_word(folder, capsys, monkeypatch):
    def interrupt(sources, overrides, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr("memfactory.api.evaluation.load_side_by_side", interrupt)
    assert run(["eval", "tiny"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_process_without_a_stdout_has_nothing_to_complain_about():
    words = [sys.executable, "-m", "memfactory", "list", "rewards"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_engine_that_failed_is_exit_code_1():
    assert EngineError("down").exit_code == 1


def test_resume_may_stand_alone():
    assert _with_values(["train", "x", "--resume"]) == ["train", "x", "--resume=auto"]
    assert _with_values(["train", "x", "--resume", "a=1"]) == ["train", "x", "--resume=auto", "a=1"]
    assert _with_values(["train", "x", "--resume", "--dry-run"]) == ["train", "x", "--resume=auto", "--dry-run"]
    assert _with_values(["train", "x", "--resume", "runs/y"]) == ["train", "x", "--resume", "runs/y"]
    assert _without_resume(["a=1", "resume=auto"]) == (["a=1"], "auto")
    assert _without_resume(["a=1"]) == (["a=1"], None)


def test_a_checkpoint_that_is_resumed_goes_on_with_its_runs_config(folder, monkeypatch):
    (folder / "run" / "checkpoints" / "step-3").mkdir(parents=True)
    (folder / "run" / "config.yaml").write_text(BASE + "train: {name: grpo}\n")
    (folder / "run" / "checkpoints" / "step-3" / "config.json").write_text("{}")
    asked = []
    monkeypatch.setattr("memfactory.api.sources.load_config", lambda source, *_, **__: asked.append(source) or BARE)
    monkeypatch.setattr("memfactory.api.training.run_training", lambda resolved, resume: asked.append(resume) or folder)
    (folder / "config.yaml").write_text("agent: {name: memory_agent}\ndata: {eval: {}}\n")
    assert run(["train", "run/checkpoints/step-3", "--resume"]) == 0
    assert run(["train", "run", "--resume"]) == 0
    assert asked == ["run", "run/checkpoints/step-3", "run", "auto"]


def test_list_names_every_kind_and_verbose_every_option(folder, capsys):
    assert run(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("memory_agent", "recurrent_memory", "longcontext", "boxed_em", "grpo", "file", "memagent_qwen3_4b"):
        assert name in shown
    assert run(["list", "modules", "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert "chunk_tokens" in shown and "Tokens of one chunk of the text. [int; default 2500]" in shown


def test_list_shows_the_components_of_a_configs_plugins(folder, capsys):
    (folder / "mine.py").write_text(
        "from memfactory.dialogue import Module\nfrom memfactory.registry import MODULES\n"
        "@MODULES.register('mine_for_the_list')\nclass Mine(Module):\n"
        "    'Mine.'\n    def dialogue(self, episode): yield\n"
    )
    (folder / "x.yaml").write_text(BASE + "plugins: [mine.py]\n")
    assert run(["list", "modules", "--config", "x.yaml"]) == 0
    assert "mine_for_the_list Mine." in " ".join(capsys.readouterr().out.split())


def test_config_show_prints_what_loads_again_and_where_it_comes_from(folder, capsys):
    (folder / "x.yaml").write_text(BASE)
    assert run(["config", "show", "x.yaml", "seed=7"]) == 0
    (folder / "again.yaml").write_text(capsys.readouterr().out)
    assert run(["config", "show", "again.yaml"]) == 0
    assert (folder / "again.yaml").read_text() == capsys.readouterr().out
    assert run(["config", "show", "x.yaml", "seed=7", "--origin"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "seed: 7 # command line: seed=7" in lines
    assert "model.path: 'tiny' # x.yaml:1" in lines
    assert "model.dtype: 'auto' # default" in lines


def test_config_validate_tells_the_mistakes_of_every_config(folder, capsys):
    (folder / "good.yaml").write_text(BASE)
    (folder / "bad.yaml").write_text(BASE + "a: 1\n")
    (folder / "worse.yaml").write_text(BASE + "b: 1\n")
    assert run(["config", "validate", "good.yaml"]) == 0
    assert run(["config", "validate", "good.yaml", "bad.yaml", "worse.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "good.yaml: valid\ngood.yaml: valid\n"
    assert "bad.yaml:4: a: unknown key" in shown.err and "worse.yaml:4: b: unknown key" in shown.err


def test_the_schema_knows_every_component_and_its_options(folder, capsys):
    assert run(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    named = [t for t in schema["properties"]["train"]["anyOf"] if "name" in t.get("properties", {})]
    trainers = {t["properties"]["name"]["const"]: t for t in named}
    assert trainers["grpo"]["properties"]["group_size"]["minimum"] == 1
    assert trainers["grpo"]["properties"]["group_size"]["description"] == "Episodes of each task: the group size G."
    agent = next(a for a in schema["properties"]["agent"]["anyOf"] if "name" in a.get("properties", {}))
    assert "chunk_tokens" in agent["properties"]
    assert run(["config", "schema", "--output", "schema.json"]) == 0
    assert json.loads((folder / "schema.json").read_text()) == schema


def test_env_lists_versions(capsys):
    assert run(["env"]) == 0
    shown = capsys.readouterr().out
    assert f"- python: {sys.version.split()[0]}" in shown
    assert "- torch: " in shown


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("memfactory ")


def test_rows_of_a_dataset_are_written_to_a_file(folder, capsys):
    assert run(["data", "export", "facts", "rows=3", "seed=5", "--output", "made/facts.jsonl"]) == 0
    rows = [json.loads(line) for line in (folder / "made/facts.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert {"context", "input", "answers"} <= set(rows[0])
    assert "made/facts.jsonl: 3 rows, sha256 " in capsys.readouterr().out


def test_a_ruler_set_is_measured_by_the_tokenizer_that_is_named(folder, small_model_path):
    words = ["data", "fwe", "--length", "4096", "--rows", "2", "--tokenizer", str(small_model_path)]
    assert run(words) == 0
    rows = json.loads((folder / "data/eval_fwe_4096.json").read_text())
    assert len(rows) == 2
    assert all(row["length"] <= 4096 + 50 for row in rows)


SMALL_AGENT = ["agent.chunk_tokens=200", "agent.memory_tokens=4", "agent.answer_tokens=4"]


def test_eval_goes_through_to_results_and_infer_to_answers(folder, capsys, small_model_path):
    assert run(["data", "export", "facts", "rows=2", "--output", "rows.jsonl"]) == 0
    words = ["eval", str(small_model_path), *SMALL_AGENT, "--data", "rows.jsonl", "--samples", "1", "--output", "out"]
    assert run(words) == 0
    assert json.loads((folder / "out/results.json").read_text())["models"]
    assert (
        run(["infer", str(small_model_path), *SMALL_AGENT, "--input", "rows.jsonl", "--output", "answers.jsonl"]) == 0
    )
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 2


def test_a_dry_run_tells_the_plan_and_what_this_machine_lacks(folder, capsys, monkeypatch, small_model_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = BASE.replace("tiny", str(small_model_path)).replace("agent: memory_agent", "agent: {name: memory_agent}")
    (folder / "x.yaml").write_text(text + "train: {name: grpo}\ndata: {train: {name: facts, rows: 4}}\n")
    assert run(["train", "x.yaml", "--dry-run"]) == 2
    assert "does not fit the model's 2,048 positions" in capsys.readouterr().out
    assert run(["train", "x.yaml", "--dry-run", *SMALL_AGENT]) == 0
    assert "optimizer steps" in capsys.readouterr().out
    assert run(["train", "x.yaml", "--dry-run", *SMALL_AGENT, "train.optimizer.kind=adamw_8bit"]) == 2
    shown = capsys.readouterr()
    assert "optimizer steps" in shown.out
    assert "train.optimizer.kind=adamw_8bit: adamw_8bit needs a CUDA GPU" in shown.err
    assert not (folder / "runs").exists()


HOPELESS = (
    "",
    "\0",
    "- 1",
    "{",
    "model: [",
    "a: &a [*a]",
    "model: {path: ${x}}",
    "agent: 3\nenv: [1]\ntrain: {}\ndata: x",
    BASE + "engine: {kind: [1]}\ntrackers: {a: b}\nplugins: {x: y}\neval: []\nengines: 3\n",
)


def test_no_config_however_broken_gives_a_traceback(folder):
    for number, text in enumerate(HOPELESS):
        (folder / f"{number}.yaml").write_text(text)
    for name in ("0", "4", "8"):
        done = command("train", f"{name}.yaml")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    for number in range(len(HOPELESS)):
        assert run(["config", "validate", f"{number}.yaml"]) == 2
        assert run(["train", f"{number}.yaml"]) == 2

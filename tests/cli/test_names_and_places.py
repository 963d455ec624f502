"""Names and places as shells, systems and trackers give them."""

import json
import os
import stat
import time

import pytest

from memfactory import environment
from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.config.optimizer import LoraOptions
from memfactory.errors import ConfigError
from memfactory.trackers.base import RunInfo
from memfactory.trackers.options import SwanlabConfig
from memfactory.trackers.swanlab import SwanlabTracker
from small_policy import small_policy

BASE = "model: tiny\nagent: memory_agent\nenv: longcontext\n"
SMALL = ["agent.chunk_tokens=200", "agent.memory_tokens=4", "agent.answer_tokens=4", "trackers=[]"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "x.yaml").write_text(BASE)
    return tmp_path


@pytest.mark.parametrize("between", ["=", " "])
def test_the_home_folder_is_found_in_every_path(place, small_model_path, between):
    model = f"model.path={small_model_path}"

    def done(words, **options):
        given = [word for name, value in options.items() for word in f"--{name}{between}{value}".split(" ")]
        return run([*words, *given]) == 0

    assert done(["data", "export", "facts", "rows=2"], output="~/rows.jsonl")
    assert done(["config", "schema"], output="~/schema.json")
    assert done(["eval", "x.yaml", model, *SMALL, "--samples", "1"], data="~/rows.jsonl", output="~/out")
    assert done(["infer", "x.yaml", model, *SMALL], input="~/rows.jsonl", output="~/a.jsonl")
    train = ["train={name: grpo, steps: 1, prompts_per_step: 1, group_size: 2}", "data.train=~/rows.jsonl"]
    assert run(["train", "x.yaml", model, *SMALL, *train, "output=~/one"]) == 0
    assert done(["train", "x.yaml", model, *SMALL, *train], output="~/two")
    assert done(["view", "~/one"], output="~/page.html")
    (place / "home" / "text.txt").write_text("The code of Ann is nine.")
    assert done(["infer", "x.yaml", model, *SMALL, "--question=~"], document="~/text.txt")
    rag = ["agent=naive_rag", "env={name: memory_bank, rewards: {em: 1.0}}", "agent.modules.answerer.max_tokens=4"]
    (place / "home" / "talk.json").write_text(json.dumps([{"speaker": "Ann", "text": "The code is nine."}]))
    assert done(["infer", "x.yaml", model, *rag, "--question=Q?"], conversation="~/talk.json", bank="~/bank")
    made = {path.name for path in (place / "home").iterdir() if not path.name.startswith(".")}
    written = {"rows.jsonl", "schema.json", "out", "a.jsonl", "one", "two", "page.html", "bank"}
    assert made == {"text.txt", "talk.json", *written}
    assert [path.name for path in (place / "work").iterdir()] == ["x.yaml"]


def test_a_question_may_begin_with_the_sign_for_home():
    from memfactory.cli.app import _at_home

    for words in (["--question=~/x is what?"], ["--question", "~/x is what?"], ["a=~/b"]):
        assert _at_home(words) == words


def test_a_linked_config_finds_what_stands_beside_the_file(place):
    (place / "far" / "configs" / "agents").mkdir(parents=True)
    (place / "far" / "configs" / "agents" / "short.yaml").write_text("name: memory_agent\nchunk_tokens: 300\n")
    (place / "far" / "rows.jsonl").write_text(json.dumps({"context": "a", "input": "b", "answers": ["c"]}) + "\n")
    (place / "far" / "base.yaml").write_text(BASE)
    (place / "far" / "real.yaml").write_text("base: base.yaml\nagent: short\ndata: {train: rows.jsonl}\n")
    (place / "work" / "link.yaml").symlink_to(place / "far" / "real.yaml")
    found = load_config("link.yaml")
    assert found.name == "link"
    assert found.config.agent.modules["memory"].options.chunk_tokens == 300
    assert found.config.data.train.options.path == str(place / "far" / "rows.jsonl")


def test_a_seed_is_as_large_as_it_can_be_used(place, small_model_path):
    with pytest.raises(ConfigError, match="seed"):
        load_config("x.yaml", [f"seed={2**63}"])
    seed = load_config("x.yaml", [f"seed={2**63 - 1}"]).config.seed
    small_policy(small_model_path, seed=seed, lora=LoraOptions(rank=2))


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """Tools that never answer."""
    for tool in ("nvidia-smi", "git"):
        path = tmp_path / "bin" / tool
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\nexec sleep 30\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(environment, "TOOL_TIMEOUT", 0.1)


def test_a_tool_that_hangs_is_left_out(hanging, caplog):
    begun = time.monotonic()
    described = environment.describe_environment()
    assert time.monotonic() - begun < 5
    assert described["gpus"] == [] and described["git_commit"] is None
    assert "nvidia-smi has not answered" in caplog.text and "git has not answered" in caplog.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("project: 'my project'", "trackers.0.project"),
        ("project: ''", "trackers.0.project"),
        (f"project: {'x' * 101}", "trackers.0.project"),
        ("workspace: a.b", "trackers.0.workspace"),
        (f"workspace: {'x' * 26}", "trackers.0.workspace"),
    ],
)
def test_names_that_swanlab_refuses_are_told_at_once(place, settings, told):
    with pytest.raises(ConfigError, match=told):
        load_config("x.yaml", [f"trackers=[{{kind: swanlab, {settings}}}]"])


def test_a_resumed_run_is_the_same_swanlab_experiment(tmp_path, monkeypatch):
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    ids = []
    for step in (0, 3):
        tracker = SwanlabTracker(SwanlabConfig())
        tracker.start(RunInfo("n" * 600, tmp_path, {"a": 1}, 5, step))
        tracker.log(step + 1, {"reward": 0.5})
        ids.append(tracker._run.id)
        tracker.finish("success", None)
    kept = (tmp_path / "swanlab" / "run_id").read_text().strip()
    assert ids == [kept, kept]

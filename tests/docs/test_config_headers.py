"""Every command in the header of a shipped config runs or starts, on small data and the embedded model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.registry import DATASETS
from small_locomo import conversation

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COMMAND = re.compile(r"^#\s{2,}(.*?)(?:\s{2,}#.*)?$", re.MULTILINE)


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))])


def commands(path: Path) -> list[str]:
    """The commands in the header, without the remarks behind them."""
    lines = COMMAND.findall(header(path))
    parts = [part.strip() for line in lines for part in re.split(r"\s{2,}or\s{2,}", line)]
    return [part for part in parts if part.startswith(("memfactory ", "make "))]


TRAINED = [(path, words) for path in CONFIGS for words in commands(path) if words.startswith("memfactory train")]


def longmemeval_question(number: int) -> dict[str, object]:
    """A LongMemEval question with one session."""
    return {
        "question_id": f"q{number}", "question_type": "multi-session", "question": "How many bikes?", "answer": 3,
        "question_date": "2023/06/01 (Thu) 00:58", "haystack_session_ids": ["s"], "answer_session_ids": ["s"],
        "haystack_dates": ["2023/05/30 (Tue) 20:21"],
        "haystack_sessions": [[{"role": "user", "content": "A third bike!", "has_answer": True}]],
    }  # fmt: skip


def paragraph_files() -> dict[str, object]:
    """A SQuAD file and a HotpotQA file of eight rows, by name."""
    text = "The code of tower {0} is K{0}."
    towers = [
        {"title": f"Tower {n}", "paragraphs": [{"context": text.format(n), "qas": [
            {"id": f"q{n}", "question": "Which code?", "answers": [{"text": f"K{n}", "answer_start": 23}]}
        ]}]}
        for n in range(8)
    ]  # fmt: skip
    hops = [
        {"_id": f"q{n}", "question": f"Which code has {n}?", "answer": f"K{n}", "type": "bridge",
         "supporting_facts": [[f"A{n}", 0], [f"B{n}", 0]],
         "context": [[f"{letter}{n}", [f"{letter} of {n}: {text.format(n)}"]] for letter in "ABCD"]}
        for n in range(8)
    ]  # fmt: skip
    return {"train-v1.1.json": {"data": towers}, "hotpot_train_v1.1.json": hops}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A newcomer's folder with the configs, and data where their headers want it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    data = tmp_path / "data"
    data.mkdir()
    conversations = [conversation(name) for name in ("conv-26", "conv-30", "conv-41")]
    (data / "locomo10.json").write_text(json.dumps(conversations))
    (data / "longmemeval_s_cleaned.json").write_text(json.dumps([longmemeval_question(number) for number in range(4)]))
    rows = [{"context": f"The tower was built in 19{n}0. " * 9, "input": "When?", "answers": [str(n)]} for n in (1, 2)]
    (data / "hotpotqa_train.json").write_text(json.dumps(rows))
    shutil.copy(ROOT / "docs" / "training.md", data / "factbook.md")
    with open(data / "factbook.md", "a") as file:
        file.write("\n# Towers\n\nThe first tower was built in 1901. The second one was built in 1912.\n")
    for name, values in paragraph_files().items():
        (data / name).write_text(json.dumps(values))
    talk = [{"role": "user", "content": "Which code?"}, {"role": "assistant", "content": "K1"}]
    for name in ("facts", "squad", "hotpotqa"):
        (data / f"{name}_traces.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    return tmp_path


def small(path: Path, command: str) -> list[str]:
    """The words of a command, with the embedded model in place of every other and a run folder that is there."""
    values = load_config(path).values
    words = [word for word in shlex.split(command)[1:] if not word.startswith(("model.path=", "engines.manager.model"))]
    own = [name for name, engine in values["engines"].items() if engine and engine.get("model")]
    models = ["model.path=tiny", "model.dtype=float32", "model.cpu_threads=1"]
    models += [f"engines.{name}.model={{path: tiny, dtype: float32, cpu_threads: 1}}" for name in own]
    if values["memory"]["embedder"]["kind"] == "hf":
        models.append("memory.embedder={kind: lexical}")
    return [*words, *(models if values["model"]["path"] != "tiny" or own else []), "trackers=[]"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_header_names_a_command_for_its_config(path: Path) -> None:
    own = f"configs/{path.name}"
    derived = {"memagent_qwen3_1.7b", "memagent_qwen3_4b_chunk_first", "tiny_sft"}
    assert path.stem in derived or any(own in command for command in commands(path))


@pytest.mark.parametrize(("path", "command"), TRAINED, ids=[f"{path.stem}-{n}" for n, (path, _) in enumerate(TRAINED)])
def test_every_training_command_of_a_header_can_start(folder: Path, path: Path, command: str) -> None:
    words = small(path, command)
    assert run([*words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_other_command_of_a_header_is_there(folder: Path, path: Path) -> None:
    for command in commands(path):
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        elif words[1] == "eval":
            # The data is a set of the config or a registered dataset.
            name = words[words.index("--data") + 1]
            assert name in load_config(path).values["data"]["eval"] or name in DATASETS.names()
        elif words[1] != "train":
            assert run(words[1:]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory_r1", "memory_r1_answer", "memory_r1_faithful", "rmm"])
def test_a_stage_trains_and_is_evaluated_on_the_test_split(folder: Path, name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    short = ["train.steps=1", "train.prompts_per_step=1", "train.group_size=2", "eval.limit=1", "eval.baselines=[]"]
    tokens = [
        f"agent.modules.{slot}.max_tokens=8"
        for slot, module in load_config(path).values["agent"]["modules"].items()
        if "max_tokens" in module
    ]
    assert run([*small(path, f"memfactory train configs/{name}.yaml"), *short, *tokens, "output=runs/RUN"]) == 0
    sets = json.loads((folder / "runs" / "RUN" / "eval.json").read_text())["evaluations"][-1]["datasets"]
    assert [*sets] == ["locomo_val"]
    assert run(["eval", "runs/RUN", "--data", "locomo", "--limit", "1", "--output", "out"]) == 0
    results = json.loads((folder / "out" / "results.json").read_text())
    assert "locomo" in json.dumps(results["models"])


def test_no_run_watches_the_test_split_while_training() -> None:
    watched = {
        (path.stem, name)
        for path in CONFIGS
        for name, data in load_config(path).values["data"]["eval"].items()
        if data.get("name") == "locomo" and data["split"] != "val"
    }
    assert watched == set()


def test_the_second_stage_reads_whole_dialogues_into_an_empty_bank(folder: Path) -> None:
    for name in ("memory_r1_answer", "memory_r1_faithful_answer"):
        resolved = load_config(folder / "configs" / f"{name}.yaml")
        assert resolved.values["data"]["train"]["form"] == "questions"
        modules = resolved.values["agent"]["modules"]
        assert {modules[slot]["interface"] for slot in ("extractor", "updater")} == {"inference"}
        assert modules["answerer"]["interface"] == "generate"


def test_the_faithful_variant_keeps_to_the_paper(folder: Path) -> None:
    values = load_config(folder / "configs" / "memory_r1_faithful.yaml").values
    modules = values["agent"]["modules"]
    assert (values["agent"]["read"], values["agent"]["turns"]) == ("turns", 1)
    assert modules["extractor"]["interface"] == modules["answerer"]["interface"] == "inference"
    assert (modules["retriever"]["k"], modules["retriever"]["per_namespace"]) == (30, True)
    assert (modules["updater"]["format"], values["memory"]["search"]) == ("mem0", "dense")
    assert [*values["env"]["rewards"]] == ["em"]


def test_memagents_warm_up_counts_rollouts() -> None:
    train = load_config(ROOT / "configs" / "memagent_original.yaml").values["train"]
    # verl's schedule advances once a rollout: 20 of them, each of 16 optimizer steps.
    assert train["optimizer"]["warmup_steps"] == 20 * train["minibatches"] * train["epochs"] == 320

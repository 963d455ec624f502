"""The configs over SQuAD and HotpotQA from file to cold start: demonstrations by rule, and runs that can start."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from memfactory.cli.app import run

ROOT = Path(__file__).parents[2]
TINY = ["model.path=tiny", "model.dtype=float32", "model.cpu_threads=1", "trackers=[]"]
FILLER = "The road along the coast was closed for repairs until the end of the winter. " * 4


def squad_file():
    """Twelve articles of one paragraph and question."""
    texts = [f"{FILLER}The code of tower {n} is K{n}. It was opened late." for n in range(12)]
    return {
        "data": [
            {
                "title": f"Tower_{n}",
                "paragraphs": [
                    {
                        "context": text,
                        "qas": [
                            {
                                "id": f"q{n}",
                                "question": f"Which code has tower {n}?",
                                "answers": [{"text": f"K{n}", "answer_start": text.index(f"K{n}.")}],
                            }
                        ],
                    }
                ],
            }
            for n, text in enumerate(texts)
        ]
    }


def hotpotqa_file():
    """Twelve questions over two supporting paragraphs of their own and two others."""
    return [
        {
            "_id": f"q{n}",
            "question": f"Which code has the mentor of Ann {n}?",
            "answer": f"K{n}",
            "type": "bridge",
            "supporting_facts": [[f"Ann {n}", 1], [f"Bob {n}", 1]],
            "context": [
                [f"Ann {n}", [FILLER, f"Her mentor is Bob {n}."]],
                [f"Bob {n}", [FILLER, f"His code is K{n}."]],
                [f"Cid {n}", [FILLER]],
                [f"Dan {n}", [FILLER, "He came late."]],
            ],
        }
        for n in range(12)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A newcomer's folder with the configs and both files under the names of the configs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-v1.1.json").write_text(json.dumps(squad_file()))
    (tmp_path / "data" / "hotpot_train_v1.1.json").write_text(json.dumps(hotpotqa_file()))
    return tmp_path


@pytest.mark.parametrize(("name", "chunks", "evidence"), [("squad", 2, 1), ("hotpotqa", 4, 2)])
def test_a_rung_starts_from_demonstrations_of_its_own_rows(folder, name, chunks, evidence):
    config, traces = f"configs/smollm2_{name}.yaml", f"data/{name}_traces.jsonl"
    # A paragraph of the made-up files is longer than half a chunk, so each is read by itself.
    assert run(["data", "traces", config, *TINY, "agent.chunk_tokens=130", "--output", traces]) == 0
    turns = [json.loads(line) for line in (folder / traces).read_text().splitlines()]
    # A quarter of the twelve rows is held out.
    assert Counter(turn["kind"] for turn in turns) == {
        "taken": 9 * evidence, "same": 9 * (chunks - evidence), "answer": 9
    }  # fmt: skip
    for turn in turns:
        prompt, reply = (message["content"] for message in turn["messages"])
        if turn["kind"] == "answer":
            assert f"{reply}." in prompt and reply.startswith("K") and prompt.endswith("Answer in a few words:")
        elif turn["kind"] == "same":
            assert f"Note so far: {reply}\n" in prompt
        else:
            assert all(sentence in prompt for sentence in reply.splitlines()) and "\nNote so far: " in prompt
    assert run(["train", f"configs/smollm2_{name}_sft.yaml", *TINY, f"data.train={traces}", "--dry-run"]) == 0
    assert run(["train", config, *TINY, "--dry-run"]) == 0


@pytest.mark.parametrize("name", ["squad", "hotpotqa"])
def test_a_rung_without_its_file_says_where_to_get_it(folder, name, capsys):
    for path in (folder / "data").iterdir():
        path.unlink()
    assert run(["data", "traces", f"configs/smollm2_{name}.yaml", *TINY, "--output", "traces.jsonl"]) == 2
    said = capsys.readouterr().err
    place = {"squad": "SQuAD-explorer", "hotpotqa": "hotpotqa.github.io"}[name]
    assert "there is no file" in said and place in said

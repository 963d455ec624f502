"""The short prompts on a real small model, which answers them without any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memfactory.cli.app import run
from real_models import real_model

TEXT = """\
Marie Curie was born in Warsaw in 1867. She studied physics in Paris and won two Nobel Prizes. Her notebooks are still
radioactive today.
"""


def inferred(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, object]:
    """The answer of SmolLM2 to a question about TEXT, with its memory and turns."""
    (folder / "text.txt").write_text(TEXT)
    (folder / "run.yaml").write_text(
        f"model: {{path: {real_model('smollm2')}, dtype: float32}}\n"
        "agent: {name: memory_agent, chunk_tokens: 100, memory_tokens: 40, answer_tokens: 24}\nenv: longcontext\n"
    )
    words = ["--question", "Where was Marie Curie born?", "--document", str(folder / "text.txt"), "--json"]
    assert run(["infer", str(folder / "run.yaml"), *overrides, *words]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_short_prompts_get_the_sentence_as_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = inferred(tmp_path, capsys, "agent.prompts=short")
    assert "Warsaw" in str(short["memory"]) and "Warsaw" in str(short["answer"])
    assert [turn["stop"] for turn in short["turns"]] == ["stop", "stop"]

"""The page on prompts: its module offers a preset, its own text stands beside one."""

from __future__ import annotations

from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.registry import MODULES
from snippets import ROOT, blocks_of, write_files

PAGE = ROOT / "docs" / "prompts.md"


@pytest.mark.usefixtures("own_components")
def test_the_module_of_the_page_offers_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(PAGE, tmp_path)
    (tmp_path / "run.yaml").write_text(
        "model: tiny\nplugins: [terse.py]\nenv: memory_bank\n"
        "agent: {name: memory_r1, prompts: short, modules: {extractor: terse_extractor}}\n"
    )
    short = load_config("run.yaml")
    assert short.warnings == ()
    assert short.config.agent.modules["extractor"].options.prompt.endswith("The most important fact:")
    default = load_config("run.yaml", ["agent.prompts=default"])
    assert default.config.agent.modules["extractor"].options.prompt.startswith("Write the most important fact")


def test_the_pages_own_text_stands_beside_the_preset(tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(PAGE) if "One word:" in block.text)
    (tmp_path / "run.yaml").write_text(f"model: tiny\nenv: longcontext\n{block.text}")
    options = load_config(tmp_path / "run.yaml").config.agent.modules["memory"].options
    short = MODULES.options("recurrent_memory").model_validate({"prompts": "short"})
    assert options.prompts.answer.endswith("One word:")
    assert options.prompts.update == short.prompts.update

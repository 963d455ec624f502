"""A name begins a section anew; a config that repeats its base's name is told the options that it drops."""

from __future__ import annotations

from pathlib import Path

import pytest

from memfactory.config import load_config

BASE = """\
model: tiny
agent: {name: memory_agent, prompts: short, chunk_tokens: 99}
env: longcontext
train: {name: grpo, steps: 7}
"""
ROOT = Path(__file__).parents[2]
DROPS = "begins the section anew, without these options of the config below: "


def loaded(folder: Path, child: str, *overrides: str):
    (folder / "below.yaml").write_text(BASE)
    (folder / "above.yaml").write_text(f"base: below.yaml\n{child}")
    return load_config(folder / "above.yaml", list(overrides))


def test_a_repeated_name_warns_of_the_options_that_it_drops(tmp_path: Path) -> None:
    resolved = loaded(tmp_path, "agent: {name: memory_agent, memory_tokens: 9}\n")
    (warning,) = resolved.warnings
    assert "above.yaml:2: agent: the name 'memory_agent' " + DROPS in warning
    assert warning.endswith("agent.chunk_tokens: 99, agent.prompts: 'short'. Leave the name out to keep them")
    (module,) = resolved.config.agent.modules.values()
    assert (module.options.chunk_tokens, module.options.order) == (2500, "memory_first")
    kept = loaded(tmp_path, "agent: {memory_tokens: 9}\n")
    (module,) = kept.config.agent.modules.values()
    assert kept.warnings == () and (module.options.chunk_tokens, module.options.order) == (99, "chunk_first")


@pytest.mark.parametrize(
    ("child", "told"),
    [
        ("train: {name: grpo, group_size: 2}", "train.steps: 7."),
        ("train: {name: grpo, steps: 2}", None),
        ("agent: {name: memory_agent, prompts: default, chunk_tokens: 3}", None),
        ("agent: {name: memory_agent, prompts: {update: '{memory} {section} {question}'}}", "agent.chunk_tokens: 99."),
        # Another component takes the place of the one below; its options have no meaning there.
        ("agent: {name: naive_rag}\nenv: memory_bank", None),
        ("env: {name: longcontext}", None),
        ("seed: 3", None),
    ],
)
def test_only_dropped_options_are_told(tmp_path: Path, child: str, told: str | None) -> None:
    warnings = [warning for warning in loaded(tmp_path, child).warnings if DROPS in warning]
    assert len(warnings) == (told is not None)
    assert told is None or f"{DROPS}{told}" in warnings[0]


def test_shipped_configs_that_repeat_a_name_are_meant_so() -> None:
    for name in ("memory_r1_faithful_answer", "quickstart_rmm_linear"):
        assert not [w for w in load_config(ROOT / "configs" / f"{name}.yaml").warnings if "anew" in w]

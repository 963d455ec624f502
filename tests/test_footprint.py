"""The memory that a plan foretells against what torch allocates: `scripts/measure_memory.py` on a small model."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import measure_memory
    finally:
        sys.path.remove(str(SCRIPTS))
    return measure_memory


@pytest.mark.parametrize(
    ("index", "fused"),
    [*((index, True) for index in (1, 2, 3, 5, 6, 8, 9)), *((index, False) for index in (0, 3, 7))],
)
def test_what_is_foretold_is_near_what_a_training_step_allocates(script, index, fused):
    setting = script.SETTINGS[index]
    config = script.qwen3(hidden=160, layers=3)
    foretold, measured = script.compare(config, setting, tokens=256, length=64, fused=fused)
    assert 0.9 < foretold / measured < 1.3, setting.name

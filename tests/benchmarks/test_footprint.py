"""The memory that a plan foretells against what torch allocates: `python -m benchmarks.memory` on a small model."""

import pytest

from benchmarks import memory


@pytest.mark.parametrize(
    ("index", "fused"),
    [*((index, True) for index in (1, 2, 3, 5, 6, 8, 9)), *((index, False) for index in (0, 3, 7))],
)
def test_what_is_foretold_is_near_what_a_training_step_allocates(index, fused):
    setting = memory.SETTINGS[index]
    config = memory.qwen3(hidden=160, layers=3)
    foretold, measured = memory.compare(config, setting, tokens=256, length=64, fused=fused)
    assert 0.9 < foretold / measured < 1.3, setting.name

"""The published commands on a machine with a GPU and nothing installed beyond the toolkit itself."""

import json
from pathlib import Path

import pytest

from memfactory.config import load_config, readiness
from memfactory.errors import ConfigError
from memfactory.plan import plan as planning
from memfactory.plan.memory import Device

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The published config of a name, with data, as `train` checks it on a GPU without any extra."""
    row = {"context": "One two three. " * 5000, "input": "Which number comes last?", "answers": ["three"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(readiness, "has_cuda", lambda: True)
    monkeypatch.setattr(readiness, "installed", lambda package: False)
    monkeypatch.setattr(planning, "memory_bytes", lambda: 256 * 2**30)
    monkeypatch.setattr(planning, "_disk", lambda options, checkpoint: [])

    def loaded(name, *overrides):
        data = f"data.train={tmp_path / 'rows.jsonl'}"
        return load_config(CONFIGS / name, [data, *overrides], command="train")

    return loaded


@pytest.mark.parametrize("name", ["memagent_qwen3_4b.yaml", "memagent_qwen3_1.7b.yaml", "memagent_original.yaml"])
def test_the_published_configs_need_no_extra(fresh, name):
    (warning,) = [text for text in fresh(name).warnings if "optimizer" in text]
    assert warning == (
        "train.optimizer.kind: auto takes adamw_offload (float32 moments in host memory), because bitsandbytes is not "
        "installed and torchao is not installed; pip install 'memfactory[bitsandbytes]' for adamw_8bit"
    )


def test_torchao_stands_in_for_bitsandbytes(fresh, monkeypatch):
    monkeypatch.setattr(readiness, "installed", lambda package: package == "torchao")
    (warning,) = [text for text in fresh("memagent_qwen3_4b.yaml").warnings if "optimizer" in text]
    assert "auto takes adamw_8bit_torchao" in warning and "torchao is not installed" not in warning
    monkeypatch.setattr(readiness, "installed", lambda package: package == "bitsandbytes")
    assert not [text for text in fresh("memagent_qwen3_4b.yaml").warnings if "optimizer" in text]


def test_a_named_kind_without_its_package_is_refused(fresh):
    with pytest.raises(ConfigError, match=r"pip install 'memfactory\[bitsandbytes\]'; or use auto"):
        fresh("memagent_qwen3_4b.yaml", "train.optimizer.kind=adamw_8bit")


def test_the_plan_counts_the_kind_that_auto_takes_here(fresh, monkeypatch):
    monkeypatch.setattr(planning, "device_of", lambda model, processes: Device("a GPU", round(79.2 * 2**30), cuda=True))
    found = planning.make_plan(fresh("memagent_qwen3_4b.yaml"))
    assert dict(found.work)["optimizer"] == "adamw_offload, 30.0 GiB of moments in the host's memory"
    assert found.problems == () and found.memory["optimizer"] == 0
    # Float32 moments on the device need 80.2 GiB, but 16 bytes a weight of the smaller model leave room.
    assert not [text for text in found.warnings if "kind=adamw fits" in text]
    smaller = planning.make_plan(fresh("memagent_qwen3_1.7b.yaml", "engine.max_batch_tokens=65536"))
    assert [text for text in smaller.warnings if "train.optimizer.kind=adamw fits a GPU too" in text]


def test_a_host_too_small_for_the_moments_is_a_problem(fresh, monkeypatch):
    monkeypatch.setattr(planning, "device_of", lambda model, processes: Device("a GPU", round(79.2 * 2**30), cuda=True))
    monkeypatch.setattr(planning, "memory_bytes", lambda: 16 * 2**30)
    (problem,) = planning.make_plan(fresh("memagent_qwen3_4b.yaml")).problems
    assert "the host's memory, which has 16.0 GiB" in problem and "(extra bitsandbytes)" in problem

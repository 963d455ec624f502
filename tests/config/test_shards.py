"""What `train.shard: fsdp2` cannot divide is refused with the key to change; and a checkpoint of shards is no model."""

from __future__ import annotations

import pytest

from memfactory.config.grpo import GrpoOptions
from memfactory.config.sources import find_source
from memfactory.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"master_weights": "bfloat16_stochastic"}, "leave master_weights out"),
        ({"optimizer": {"kind": "adamw_offload"}}, "those of 'adamw_offload' cannot be divided"),
        ({"loss": {"kl_coef": 0.1, "reference_sync_steps": 2}}, "leave loss.reference_sync_steps out"),
    ],
)
def test_what_cannot_be_sharded_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        GrpoOptions(shard="fsdp2", **options)
    if "master_weights" not in options:
        # Adapters stay whole, with their optimizer and their reference.
        assert GrpoOptions(shard="fsdp2", lora={"rank": 4}, **options).shard == "fsdp2"


def test_a_checkpoint_of_shards_is_no_model_and_the_way_to_one_is_named(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-7"
    (checkpoint / "shards").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("model: {path: tiny}\n")
    with pytest.raises(ConfigError, match=f"memfactory train {tmp_path}/run --resume {checkpoint} train.steps=7"):
        find_source(str(checkpoint), trained=True)

"""The policy that a run's options ask for: whole in each process, or sharded over several."""

from __future__ import annotations

import logging

from peft import PeftModel
from transformers import PreTrainedModel

from memfactory.config.training import TrainerOptions
from memfactory.environment import process_count
from memfactory.model.chat import ChatFormat
from memfactory.model.options import ModelConfig
from memfactory.policy.policy import Policy

log = logging.getLogger("memfactory")


def make_policy(
    model: PreTrainedModel | PeftModel, chat: ChatFormat, config: ModelConfig, options: TrainerOptions, *, seed: int
) -> Policy:
    """`model` in training, under `train.shard`. One process holds the whole model in any case."""
    if options.shard == "none":
        return Policy(model, chat, config, options, seed=seed)
    if process_count() == 1:
        log.warning(
            "train.shard: fsdp2 has no effect in one process; start several with "
            "`torchrun --nproc_per_node N -m memfactory train ...`"
        )
        return Policy(model, chat, config, options, seed=seed)
    # Its libraries are loaded only where they are used.
    from memfactory.policy.sharded import ShardedPolicy

    return ShardedPolicy(model, chat, config, options, seed=seed)

"""A GRPO trainer as a run would build it, but without a run folder."""

from __future__ import annotations

from memfactory.build import build_runtime, training_data
from memfactory.config import Resolved
from memfactory.config.trained import trainer_options
from memfactory.policy.policy import Policy
from memfactory.trainers.base import Run
from memfactory.trainers.grpo import GrpoTrainer


def grpo_trainer(resolved: Resolved, run: Run) -> GrpoTrainer:
    """The trainer of `resolved`, with its model loaded; new adapters have seed 0."""
    options = trainer_options(resolved.config)
    runtime = build_runtime(resolved, training=True)
    policy = Policy(runtime.model, runtime.chat, resolved.config.model, options, seed=0)
    return GrpoTrainer(options, runtime, policy, GrpoTrainer.read(options, training_data(resolved)), run)

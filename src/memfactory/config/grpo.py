"""Options of GRPO. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from memfactory.config.losses import LossOptions, Named, Normalize, existing, named
from memfactory.config.objectives import EstimatorOptions
from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.training import Overlong, TrainerOptions
from memfactory.config.tree import KeyPath
from memfactory.registry import ADVANTAGES, Registry


class GrpoOptions(TrainerOptions):
    """Group-relative policy optimization over trajectories of several conversations (arXiv 2402.03300)."""

    resumable: ClassVar[frozenset[str]] = TrainerOptions.resumable | {
        "valid_groups",
        "transcripts_per_step",
        "transcript_tokens",
        "max_unknown_fraction",
    }

    prompts_per_step: int = Field(8, ge=1)
    """Tasks of one optimizer step; each is one group."""
    group_size: int = Field(8, ge=1)
    """Episodes of each task: the group size G."""
    rollout_prompts: int | None = Field(None, ge=1)
    """Tasks of one rollout; null: prompts_per_step."""
    require_variance: bool = False
    """Dynamic sampling: tasks are rolled out until prompts_per_step groups have rewards that differ (DAPO, arXiv
    2503.14476)."""
    max_rollouts_per_step: int = Field(20, ge=1)
    """With require_variance: after this many rollouts the step trains on the groups it has; with none the run stops."""
    carry_groups: bool = False
    """With require_variance: surplus groups are carried to the next step and trained with their ratio to the policy
    that sampled them, and every rollout has the same size. Off: a rollout has only as many tasks as groups are
    missing."""
    count_zero_variance: bool = False
    """Groups with equal rewards count in token weights, minibatches and the KL term, as in verl; off: they are left out
    of all three."""
    valid_groups: int | None = Field(None, ge=1)
    """Stop after this many groups whose rewards differ, even before `steps`; the last step is shortened to fit."""
    minibatches: int = Field(1, ge=1)
    """Minibatches of one rollout; each is one optimizer step."""
    epochs: int = Field(1, ge=1)
    """Passes over the groups of one rollout (PPO epochs)."""
    advantage: Named = "group"
    """Advantage estimator: a name (see `memfactory list advantages`), or a mapping of `name` and its options."""
    normalize: Normalize = "std"
    """Divisor of reward minus group mean in the estimator `group`: the group's unbiased or population std (std,
    population_std), the batch's std (batch_std), the group's mean (mean: MaxRL), or 1 (none: Dr. GRPO)."""
    advantage_epsilon: float = Field(1e-4, ge=0)
    """Added to the divisor."""
    loss: LossOptions = LossOptions()
    """The objective."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the log-probabilities in the loss use the same."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling in training. Below 1 the sampled and the scored distributions differ."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling in training; 0: off."""
    overlong: Overlong = "unknown"
    """Tasks that do not fit the context. unknown: the rewards of their episodes are unknown. drop, error: every task's
    first prompt is measured before training, and tasks that do not fit are left out or stop the run."""
    transcripts_per_step: int = Field(2, ge=0)
    """Groups of each step whose conversations are written to transcripts/."""
    transcript_tokens: bool = False
    """Also write token ids and log-probabilities, about 20 bytes per token."""
    max_unknown_fraction: float = Field(0.2, ge=0, le=1)
    """The run stops if a larger fraction of a step's rewards is unknown, such as by a judge that fails. Episodes that
    do not fit the context do not count."""

    @property
    def planned_updates(self) -> int:
        """As of every trainer. `valid_groups` says how many only where every group of a step is valid."""
        steps = self.steps
        if self.valid_groups is not None and self.require_variance:
            steps = min(steps, math.ceil(self.valid_groups / self.prompts_per_step))
        return steps * self.updates_per_step

    @property
    def updates_per_step(self) -> int:
        return self.minibatches * self.epochs

    def components(self) -> Iterator[tuple[KeyPath, Registry[Any], Named]]:
        yield from super().components()
        yield ("advantage",), ADVANTAGES, self.advantage

    def check(self, config: RunConfig, problems: Problems) -> list[str]:
        sizes: tuple[KeyPath, ...] = (("train", "minibatches"), ("train", "prompts_per_step"))
        if self.minibatches > self.prompts_per_step and not problems.touch(*sizes):
            problems.add(
                ("train", "minibatches"),
                f"the {self.prompts_per_step} prompts of a step (prompts_per_step) cannot be split into "
                f"{self.minibatches} parts",
            )
        warnings = super().check(config, problems)
        if self.group_size == 1:
            warnings.append("train.group_size: a group of 1 has no advantage, so nothing will be learned")
        return warnings

    @property
    def named_advantage(self) -> tuple[str, dict[str, Any]]:
        """The advantage estimator's name and its own options."""
        return named(self.advantage)

    @field_validator("advantage")
    @classmethod
    def _estimator_exists(cls, value: Named) -> Named:
        return existing(value, ADVANTAGES)

    def without_effect(self) -> Mapping[str, str]:
        idle = dict(super().without_effect())
        if not self.require_variance:
            idle["max_rollouts_per_step"] = "require_variance is false"
        estimator, _ = self.named_advantage
        own = ADVANTAGES.options(estimator)
        if not (issubclass(own, EstimatorOptions) and own.reads_normalize):
            idle |= dict.fromkeys(("normalize", "advantage_epsilon"), f"advantage is {estimator}")
        elif self.normalize in ("none", "mean"):
            idle["advantage_epsilon"] = f"normalize is {self.normalize}"
        return idle

    @model_validator(mode="after")
    def _carried_groups_vary(self) -> GrpoOptions:
        if self.carry_groups and not self.require_variance:
            raise ValueError("carry_groups needs require_variance: true; without it no rollout has too many groups")
        return self

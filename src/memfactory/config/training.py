"""What a trainer can be told: the options of GRPO, SFT and online learning as data. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from memfactory.config.losses import LossOptions, Named, Normalize, existing, named
from memfactory.config.objectives import EstimatorOptions
from memfactory.registry import ADVANTAGES, Options


class LoraOptions(Options):
    """Low-rank adapters (arXiv 2106.09685) in float32; the base model stays frozen."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Which linear layers get an adapter."""


OptimizerKind = Literal["adamw", "adamw_8bit", "adamw_8bit_torchao", "adamw_4bit_torchao", "adamw_offload", "auto"]
TORCHAO_KINDS = ("adamw_8bit_torchao", "adamw_4bit_torchao")


class OptimizerOptions(Options):
    """AdamW, its schedule and its limits."""

    kind: OptimizerKind = "adamw"
    """adamw: float32 moments; adamw_8bit: 8-bit moments (extra `bitsandbytes`, CUDA); adamw_8bit_torchao and
    adamw_4bit_torchao: moments of so many bits (extra `torchao`); adamw_offload: float32 moments in the host's memory;
    auto: 8 bit on CUDA, else adamw."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay on matrices; vectors (norms, biases) get none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up: not at all, or to `final_share` of its peak."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    final_share: float = Field(0.0, ge=0, le=1)
    """The share of the peak that a falling schedule ends at."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""

    def kind_on(self, *, cuda: bool, stochastic: bool = False) -> OptimizerKind:
        """The kind that `auto` stands for: with stochastic rounding the 8-bit moments are torchao's."""
        if self.kind != "auto":
            return self.kind
        if not cuda:
            return "adamw"
        return "adamw_8bit_torchao" if stochastic else "adamw_8bit"

    def without_effect(self) -> Mapping[str, str]:
        return {"final_share": "schedule is constant"} if self.schedule == "constant" else {}


Overlong = Literal["unknown", "drop", "error"]
Packing = Literal["padded", "packed", "shared"]


class LoopOptions(Options):
    """What every trainer can be told."""

    plays: ClassVar[bool] = True
    """Whether the trainer has an agent play tasks of an environment, so that a config must name both."""
    steps: int = Field(100, ge=1)
    """Optimizer steps; with several minibatches or epochs: rollouts, each of which is that many optimizer steps."""
    save_every: int = Field(50, ge=0)
    """Optimizer steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Older checkpoints are deleted."""
    save_seconds: float | None = Field(None, gt=0)
    """Also save a checkpoint when this many seconds have passed since the last."""
    eval_every: int = Field(0, ge=0)
    """Optimizer steps between evaluations; 0: none in between."""
    eval_at_start: bool = True
    """Evaluate before the first step."""
    eval_at_end: bool = True
    """Evaluate after the last step."""


class TrainerOptions(LoopOptions):
    """What every trainer of the language model can be told."""

    optimizer: OptimizerOptions = OptimizerOptions()
    """The optimizer."""
    lora: LoraOptions | None = None
    """Train adapters instead of the whole model."""
    master_weights: Literal["float32", "bfloat16_stochastic"] = "float32"
    """What the optimizer updates where the whole model is trained: float32 weights, or bfloat16 ones that each update
    rounds at random to one of their two neighbours, so that small updates count on average. Adapters are float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work."""
    model_dropout: bool = False
    """Keep the dropout that the model's own config has. Off, so that the log-probabilities that train are those that
    were sampled; adapters have `lora.dropout`, which is not concerned."""
    packing: Packing = "shared"
    """How conversations are fed: a padded row each (padded), one after the other in one row (packed), or packed with
    what several begin with computed once (shared). The gradient is the same; padded is what any model can do."""
    trim_last_layer: bool = True
    """Leave out of the last layer what no reply token is predicted from; the gradient is the same."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens fed (with padding, common beginnings once) in one forward and backward pass; halved when memory runs
    out."""
    logprob_chunk_tokens: int = Field(2048, ge=1)
    """Reply tokens whose logits exist at one time."""

    def without_effect(self) -> Mapping[str, str]:
        return {} if self.lora is None else {"master_weights": "adapters are float32"}

    @property
    def planned_updates(self) -> int:
        """How many optimizer updates a run takes at most, which is what a falling schedule is spread over; 0: that is
        known once the data has been read."""
        return self.steps

    @property
    def stochastic(self) -> bool:
        """Whether the trained weights are bfloat16 and rounded at random."""
        return self.master_weights == "bfloat16_stochastic" and self.lora is None

    @property
    def masters(self) -> Literal["float32", "bfloat16"]:
        """The type of the trained weights."""
        return "bfloat16" if self.stochastic else "float32"

    @model_validator(mode="after")
    def _rounding_is_the_optimizers(self) -> TrainerOptions:
        if self.stochastic and self.optimizer.kind == "adamw_8bit":
            raise ValueError(
                "master_weights 'bfloat16_stochastic' needs an optimizer that rounds at random, which bitsandbytes' "
                "adamw_8bit does not; use optimizer.kind adamw_8bit_torchao, adamw_offload or adamw"
            )
        return self


class GrpoOptions(TrainerOptions):
    """Group-relative policy optimization over trajectories of several conversations (arXiv 2402.03300)."""

    prompts_per_step: int = Field(8, ge=1)
    """Tasks whose groups make one optimizer step."""
    generations: int = Field(8, ge=1)
    """Attempts at each task: the group size G."""
    rollout_prompts: int | None = Field(None, ge=1)
    """Tasks that are rolled out together; null: prompts_per_step."""
    require_variance: bool = False
    """Only groups whose rewards differ count towards prompts_per_step; further tasks are rolled out until they do."""
    max_rollouts_per_step: int = Field(20, ge=1)
    """With require_variance: after this many rollouts the step goes on with the groups it has, or stops the run."""
    carry_groups: bool = False
    """With require_variance: every rollout is of equally many tasks, and groups beyond prompts_per_step wait for the
    next step; off: rollouts shrink to what is still wanted. Groups that waited train by their ratio to the policy that
    sampled them."""
    count_zero_variance: bool = False
    """Groups whose rewards are all equal count in the weights, the minibatches and the KL term, as in verl; off: they
    are left out of all of it."""
    valid_groups: int | None = Field(None, ge=1)
    """Stop after this many groups whose rewards differ, even before `steps`; the last step is cut to fit."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps the groups of one rollout are split into."""
    epochs: int = Field(1, ge=1)
    """How often the groups of one rollout are gone through."""
    advantage: Named = "group"
    """The advantage estimator: a name (`memfactory list advantages`), or a mapping of `name` and options of its own."""
    normalize: Normalize = "std"
    """Advantage of `group`: reward minus group mean, divided by the group's std (std, population_std), the whole
    batch's (batch_std), the group's mean (mean: MaxRL), or by nothing (none: Dr. GRPO)."""
    advantage_epsilon: float = Field(1e-4, ge=0)
    """Added to the std that divides."""
    loss: LossOptions = LossOptions()
    """The objective."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the log-probabilities that train use the same."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling in training. Below 1 the sampling and the scored distribution differ."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling in training; 0: off."""
    overlong: Overlong = "unknown"
    """Tasks whose prompts do not fit the context: their attempts end with an unknown reward (unknown), or those whose
    first prompt does not fit are left out (drop) or refused (error) before training; both measure every task."""
    transcripts_per_step: int = Field(2, ge=0)
    """Groups whose conversations are written to transcripts/ each step."""
    transcript_tokens: bool = False
    """Whether they also hold the ids that were fed and sampled and the log-probabilities, some 20 bytes a token."""
    max_unknown_share: float = Field(0.2, ge=0, le=1)
    """The run stops when a larger share of a step's rewards is unknown (the judge failed). Attempts that do not fit the
    context do not count."""

    @property
    def planned_updates(self) -> int:
        """As of every trainer. `valid_groups` says how many only where every group of a step is valid."""
        steps = self.steps
        if self.valid_groups is not None and self.require_variance:
            steps = min(steps, math.ceil(self.valid_groups / self.prompts_per_step))
        return steps * self.minibatches * self.epochs

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


class SftStage(Options):
    """One part of a curriculum: so many optimizer steps, or passes, on one dataset."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps of this stage."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the dataset, in place of steps."""
    data: str | dict[str, object]
    """The dataset of this stage, as under `data.train`."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of this stage; null: the optimizer's."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> SftStage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a stage needs either steps or epochs")
        return self


OverlongRow = Literal["error", "drop", "cut"]
FULL_RATE, LORA_RATE = 1e-5, 1e-4


class SftOptions(TrainerOptions):
    """Supervised fine-tuning on conversations; only the assistant's tokens are trained on."""

    plays: ClassVar[bool] = False
    steps: int = Field(0, ge=0)
    """Optimizer steps; 0: as many as `epochs` are, or those of all stages."""
    epochs: float | None = Field(None, gt=0)
    """Passes over `data.train`, in place of steps; null: one, where there are neither steps nor stages."""
    batch_size: int = Field(64, ge=1)
    """Conversations in one optimizer step."""
    max_tokens: int | None = Field(None, ge=2)
    """The longest conversation in tokens; null: what fits the model."""
    overlong: OverlongRow = "error"
    """What becomes of a longer one: it stops the run before it begins (error), is left out (drop), or what fits of it
    is learnt (cut)."""
    stages: tuple[SftStage, ...] = ()
    """A curriculum, one stage after the other; empty: `steps` or `epochs` on `data.train`."""

    @model_validator(mode="before")
    @classmethod
    def _steps_are_those_of_the_stages(cls, values: Any) -> Any:
        stages = values.get("stages") if isinstance(values, dict) else None
        if isinstance(stages, (list, tuple)) and stages and "steps" not in values:
            named = [stage.model_dump() if isinstance(stage, SftStage) else stage for stage in stages]
            given = [stage.get("steps") if isinstance(stage, dict) else None for stage in named]
            if all(isinstance(steps, int) for steps in given):
                return {**values, "steps": sum(given)}
        return values

    @model_validator(mode="before")
    @classmethod
    def _rate_of_supervised_learning(cls, values: Any) -> Any:
        """A sensible peak where none is given: that of RL is far too low here."""
        optimizer = values.get("optimizer", {}) if isinstance(values, dict) else None
        if not isinstance(optimizer, dict) or "learning_rate" in optimizer:
            return values
        rate = FULL_RATE if values.get("lora") is None else LORA_RATE
        return {**values, "optimizer": {**optimizer, "learning_rate": rate}}

    @model_validator(mode="after")
    def _steps_agree(self) -> SftOptions:
        given = [stage.steps for stage in self.stages]
        total = sum(steps or 0 for steps in given) if None not in given else 0
        if self.stages and self.steps != total:
            has = f"have {total}" if total else "are counted in epochs"
            raise ValueError(f"steps is {self.steps}, but the stages {has}; leave steps out")
        if self.epochs is not None and (self.steps or self.stages):
            there = "stages, which have their own steps or epochs" if self.stages else "steps"
            raise ValueError(f"epochs is given beside {there}; leave one of the two out")
        return self


class OnlineOptions(LoopOptions):
    """Modules with parameters of their own learn from attempts as they are made; the language model stays as it is."""

    batch_size: int = Field(4, ge=1)
    """Tasks that are attempted, once each, and then learnt from in one step."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of the policy; 0: greedy. What is explored is up to the modules."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling; 0: off."""
    overlong: Overlong = "unknown"
    """Tasks whose prompts do not fit the context: their attempts teach nothing (unknown), or those whose first prompt
    does not fit are left out (drop) or refused (error) before training; both measure every task."""
    transcripts_per_step: int = Field(2, ge=0)
    """Attempts whose conversations are written to transcripts/ each step."""
    max_failed_share: float = Field(0.2, ge=0, le=1)
    """The run stops when a larger share of a step's attempts could not be played to their end (a helper failed).
    Attempts that do not fit the context do not count."""

    def without_effect(self) -> Mapping[str, str]:
        return dict.fromkeys(("top_p", "top_k"), "temperature is 0") if self.temperature == 0 else {}

"""What a trainer can be told: the options of GRPO, SFT and online learning as data. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from memfactory.config.objectives import EstimatorOptions, ObjectiveOptions
from memfactory.errors import unknown
from memfactory.registry import ADVANTAGES, OBJECTIVES, Options, Registry


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


Normalize = Literal["std", "population_std", "batch_std", "mean", "none"]
Weighting = Literal["token", "turn", "trajectory", "prompt", "constant"]
Overlong = Literal["unknown", "drop", "error"]
Packing = Literal["padded", "packed", "shared"]


Named = str | dict[str, Any]
CONDITIONAL = ("clip_low", "clip_high", "dual_clip", "sapo_positive", "sapo_negative")
"""The keys of `train.loss` that some objectives do not read."""


def named(value: Named) -> tuple[str, dict[str, Any]]:
    """The name and the options in what names a component: a name, or a mapping of `name` and options."""
    if isinstance(value, str):
        return value, {}
    return str(value.get("name")), {key: given for key, given in value.items() if key != "name"}


def existing(value: Named, registry: Registry[Any]) -> Named:
    """`value`, whose name must be one of `registry`. Raises ValueError with the nearest name."""
    name, _ = named(value)
    if name not in registry.names():
        raise ValueError(unknown(registry.kind, name, registry.names()))
    return value


class LossOptions(Options):
    """The per-token objective and how tokens are weighed; formulas in `trainers/objective.py`."""

    objective: Named = "ppo"
    """The per-token loss: the name of an objective (`memfactory list objectives`), or a mapping of `name` and options
    of its own."""
    clip_low: float = Field(0.2, ge=0)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(0.2, ge=0)
    """The ratio is clipped above at 1 + clip_high (cispo: the upper bound itself is clip_high)."""
    dual_clip: float | None = Field(None, gt=1)
    """The loss of a token with a negative advantage is at most this many times its size (arXiv 1912.09729); null:
    off."""
    entropy_weight: float = Field(0.0, ge=0)
    """Weight of the entropy bonus: the loss of a token is lowered by this times the entropy of its distribution."""
    sapo_positive: float = Field(1.0, gt=0)
    """SAPO's temperature for positive advantages (arXiv 2511.20347)."""
    sapo_negative: float = Field(1.05, gt=0)
    """SAPO's temperature for negative advantages."""
    weighting: Weighting = "token"
    """Each trained token weighs the same (token), or each turn, trajectory or prompt does; constant: Dr. GRPO."""
    constant_length: int | None = Field(None, ge=1)
    """The length L that `weighting: constant` divides by: each token weighs 1 / (turns x L)."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of the KL term against the reference; 0: no reference is kept at all."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """The per-token KL estimator."""
    kl_unbiased: bool = False
    """Multiply the KL estimate by the token's ratio, which makes its gradient that of the KL (arXiv 2512.02556)."""
    kl_in_reward: bool = False
    """Subtract kl_weight times the KL estimate of a trajectory's tokens from its reward, in place of a term in the
    loss."""
    kl_target: float | None = Field(None, gt=0)
    """Adapt the KL weight so that the mean KL of a trained token comes to this (arXiv 1909.08593); null: constant."""
    kl_horizon: int = Field(10_000, ge=1)
    """With kl_target: after this many trajectories the KL weight has changed by a fifth at most, twice that for twice
    as many."""
    reference_every: int = Field(0, ge=0)
    """Move the reference towards the policy after every so many steps; 0: it stays the policy as it was before
    training."""
    reference_mixup: float = Field(1.0, gt=0, le=1)
    """How far the reference moves: 1 makes it the policy (reset), 0.05 a moving average (arXiv 2404.09656)."""
    sampler_correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    """Importance weight policy / sampler for engines whose log-probabilities differ from the trainer's."""
    correction_low: float = Field(0.5, ge=0)
    """Masks: weights below this drop the token or turn."""
    correction_high: float = Field(2.0, gt=0)
    """Truncation: weights are cut here. Masks: weights above this drop the token or turn."""
    correction_turn: Literal["geometric", "product"] = "geometric"
    """Sequence corrections: a turn's weight is the geometric mean of its tokens' weights, or their product."""
    mask_truncated: bool = False
    """Turns that were cut by length train nothing (the rest of their trajectory does)."""

    def without_effect(self) -> Mapping[str, str]:
        correction = self.sampler_correction
        idle = {
            "constant_length": self.weighting != "constant" and f"weighting is {self.weighting}",
            "kl_estimator": self.kl_weight == 0 and "kl_weight is 0",
            "kl_unbiased": self.kl_weight == 0 and "kl_weight is 0",
            "kl_horizon": self.kl_target is None and "kl_target is null",
            "reference_mixup": self.reference_every == 0 and "reference_every is 0",
            "correction_low": not correction.endswith("mask") and f"sampler_correction is {correction}",
            "correction_high": correction == "none" and "sampler_correction is none",
            "correction_turn": not correction.startswith("sequence") and f"sampler_correction is {correction}",
        }
        name, _ = self.named_objective
        own = OBJECTIVES.options(name)
        reads = own.reads if issubclass(own, ObjectiveOptions) else None
        idle |= {key: f"objective is {name}" for key in CONDITIONAL if reads is not None and key not in reads}
        return {key: why for key, why in idle.items() if isinstance(why, str)}

    @model_validator(mode="after")
    def _constant_needs_length(self) -> LossOptions:
        if self.weighting == "constant" and self.constant_length is None:
            raise ValueError("weighting 'constant' needs constant_length (the longest reply, in tokens)")
        return self

    @property
    def named_objective(self) -> tuple[str, dict[str, Any]]:
        """The objective's name and its own options."""
        return named(self.objective)

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_weight > 0 and not self.kl_in_reward

    @property
    def moving_reference(self) -> bool:
        """Whether the reference follows the policy."""
        return self.kl_weight > 0 and self.reference_every > 0

    @field_validator("objective")
    @classmethod
    def _objective_exists(cls, value: Named) -> Named:
        return existing(value, OBJECTIVES)

    @model_validator(mode="after")
    def _kl_options_have_a_kl(self) -> LossOptions:
        wanted = [
            name
            for name, on in (
                ("kl_in_reward", self.kl_in_reward),
                ("kl_target", self.kl_target is not None),
                ("reference_every", self.reference_every > 0),
            )
            if on
        ]
        if wanted and self.kl_weight == 0:
            raise ValueError(f"{wanted[0]} needs a kl_weight above 0: without one there is no KL and no reference")
        if self.kl_in_reward and self.kl_unbiased:
            raise ValueError("kl_unbiased corrects the gradient of a KL term in the loss, but kl_in_reward has none")
        return self

    @model_validator(mode="after")
    def _cispo_bound(self) -> LossOptions:
        if self.named_objective[0] == "cispo" and self.clip_high < 1:
            raise ValueError(
                f"objective 'cispo' takes clip_high as the largest ratio itself (5 is usual), got {self.clip_high}"
            )
        return self


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

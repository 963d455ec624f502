"""What a trainer can be told: the options of GRPO, SFT and online learning as data. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from memfactory.components import ModuleOptions
from memfactory.config.losses import SUPERVISED, LossOptions, Named, Normalize, existing, named
from memfactory.config.objectives import EstimatorOptions, ObjectiveOptions
from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.tree import KeyPath
from memfactory.errors import unknown
from memfactory.registry import ADVANTAGES, MODULES, OBJECTIVES, Options, Registry
from memfactory.types import SamplingParams


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
    """How the learning rate falls after the warm-up: not at all, or to `min_lr_ratio` of its peak."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
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
        return {"min_lr_ratio": "schedule is constant"} if self.schedule == "constant" else {}


Overlong = Literal["unknown", "drop", "error"]
Packing = Literal["padded", "packed", "shared"]


class LoopOptions(Options):
    """Options of every trainer. A trainer of your own derives its options from these, or from `TrainerOptions` where it
    trains the language model; the methods below say to the rest of the program what the trainer does."""

    plays: ClassVar[bool] = True
    """Whether the trainer has an agent play tasks of an environment, so that a config must name both."""
    resumable: ClassVar[frozenset[str]] = frozenset(
        {"steps", "save_every", "save_seconds", "keep_checkpoints", "eval_every", "eval_at_start", "eval_at_end"}
    )
    """Options that a resumed run may change."""
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

    @property
    def policy(self) -> TrainerOptions | None:
        """These options, if the trainer trains the language model; None: modules learn by themselves."""
        return None

    @property
    def sampling(self) -> SamplingParams:
        """Sampling parameters of the policy in training: the options `temperature`, `top_p` and `top_k`, if any."""
        names = {"temperature", "top_p", "top_k"} & type(self).model_fields.keys()
        return SamplingParams(**{name: getattr(self, name) for name in names})

    def datasets(self) -> Iterator[tuple[KeyPath, object]]:
        """Datasets that the options name beside `data.train`, by their keys."""
        yield from ()

    def components(self) -> Iterator[tuple[KeyPath, Registry[Any], Named]]:
        """Registered components that the options name together with options of their own, by their keys."""
        yield from ()

    def check(self, config: RunConfig, problems: Problems) -> list[str]:
        """Add to `problems` whatever cannot work, by key; return warnings. Nothing is loaded yet."""
        return [
            f"agent.modules.{slot}.interface: trainer {config.trainer_name!r} leaves the language model as it is, so "
            "`rollout` trains nothing"
            for slot, module in config.agent.modules.items()
            if isinstance(module.options, ModuleOptions)
            and module.options.interface == "rollout"
            and MODULES.get(module.name).steps
        ]


class TrainerOptions(LoopOptions):
    """Options of every trainer of the language model.

    An option called `loss` (a `LossOptions`) is the loss of the policy, `temperature` is what it is sampled and scored
    at. Without them it is the negative log-likelihood at temperature 1.
    """

    resumable: ClassVar[frozenset[str]] = LoopOptions.resumable | {
        "micro_batch_tokens",
        "packing",
        "gradient_checkpointing",
        "logprob_chunk_tokens",
        "trim_last_layer",
    }
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

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        loss = cls.model_fields.get("loss")
        if loss is not None and not (isinstance(loss.annotation, type) and issubclass(loss.annotation, LossOptions)):
            raise TypeError(f"the option `loss` of {cls.__name__} must be a LossOptions of memfactory.config.losses")

    @property
    def policy(self) -> TrainerOptions:
        return self

    @property
    def policy_loss(self) -> LossOptions:
        """The loss of the policy: the option `loss`, or the negative log-likelihood for a trainer without one."""
        loss: LossOptions = getattr(self, "loss", SUPERVISED)
        return loss

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates on the turns of one rollout or batch."""
        return 1

    def components(self) -> Iterator[tuple[KeyPath, Registry[Any], Named]]:
        if "loss" in type(self).model_fields:
            yield ("loss", "objective"), OBJECTIVES, self.policy_loss.objective

    def check(self, config: RunConfig, problems: Problems) -> list[str]:
        warnings = [*self._schedule_warnings(), *_uncredited(config, problems)]
        if not self.plays:
            return warnings
        _refuse_own_learners(config, problems)
        sampling, loss = self.sampling, self.policy_loss
        if sampling.temperature == 0:
            problems.add(("train", "temperature"), "must be above 0: a policy that is trained is sampled")
        low, high = loss.correction_low, loss.correction_high
        if low > high and not problems.touch(("train", "loss")):
            problems.add(("train", "loss", "correction_low"), f"{low:g} is above correction_high = {high:g}")
        cut = [name for name, on in (("train.top_p", sampling.top_p < 1), ("train.top_k", sampling.top_k > 0)) if on]
        if cut:
            warnings.append(
                f"{' and '.join(cut)}: replies are drawn from a cut distribution but scored under the whole one"
            )
        return [*warnings, *_idle_objective(loss, self.updates_per_step)]

    def _schedule_warnings(self) -> Iterator[str]:
        optimizer, updates = self.optimizer, self.planned_updates
        if optimizer.schedule != "constant" and 0 < updates <= optimizer.warmup_steps:
            yield (
                f"train.optimizer.warmup_steps: {optimizer.warmup_steps} of {updates} optimizer steps are warm-up, so "
                f"the {optimizer.schedule} schedule never falls"
            )

    @property
    def planned_updates(self) -> int:
        """Optimizer updates of a whole run at most, over which a falling schedule is spread; 0: not known before the
        data has been read."""
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

    resumable: ClassVar[frozenset[str]] = TrainerOptions.resumable | {
        "valid_groups",
        "transcripts_per_step",
        "transcript_tokens",
        "max_unknown_fraction",
    }

    prompts_per_step: int = Field(8, ge=1)
    """Tasks whose groups make one optimizer step."""
    group_size: int = Field(8, ge=1)
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
    max_unknown_fraction: float = Field(0.2, ge=0, le=1)
    """The run stops when a larger share of a step's rewards is unknown (the judge failed). Attempts that do not fit the
    context do not count."""

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
    resumable: ClassVar[frozenset[str]] = TrainerOptions.resumable | {"epochs"}

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

    def datasets(self) -> Iterator[tuple[KeyPath, object]]:
        for index, stage in enumerate(self.stages):
            yield ("stages", index, "data"), stage.data

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

    resumable: ClassVar[frozenset[str]] = LoopOptions.resumable | {"transcripts_per_step"}

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
    max_failed_fraction: float = Field(0.2, ge=0, le=1)
    """The run stops when a larger share of a step's attempts could not be played to their end (a helper failed).
    Attempts that do not fit the context do not count."""

    def without_effect(self) -> Mapping[str, str]:
        return dict.fromkeys(("top_p", "top_k"), "temperature is 0") if self.temperature == 0 else {}


def _uncredited(config: RunConfig, problems: Problems) -> Iterator[str]:
    """Warn of each of `env.steps` that no module of the agent has: it credits nothing."""
    credited = getattr(config.env.options, "steps", {})
    if not credited or problems.touch(("agent",), ("env",)):
        return
    existing = {step for module in config.agent.modules.values() for step in MODULES.get(module.name).steps}
    for step in credited:
        if existing and step not in existing:
            yield f"env.steps.{step} credits nothing: {unknown('step of this agent', step, existing)}"


def _refuse_own_learners(config: RunConfig, problems: Problems) -> None:
    """A module that learns by itself is not trained by a trainer of the language model."""
    for slot, module in config.agent.modules.items():
        options = module.options
        if not MODULES.get(module.name).learns_itself or not isinstance(options, ModuleOptions):
            continue
        if options.interface != "inference":
            problems.add(
                ("agent", "modules", slot, "name"),
                f"{module.name!r} learns by itself, so trainer {config.trainer_name!r} does not train it; use "
                "`train: online`, or `interface: inference` to keep it as it is",
            )


def _idle_objective(loss: LossOptions, updates: int) -> Iterator[str]:
    """Warn of clip ranges and penalties that cannot take effect in so many `updates` on a rollout."""
    name, _ = loss.named_objective
    own = OBJECTIVES.options(name)
    if issubclass(own, ObjectiveOptions) and own.binds is not None and own.suggested is not None:
        widest = max(loss.clip_low, loss.clip_high)
        if widest > own.binds:
            low, high = own.suggested
            yield (
                f"train.loss.clip_low and clip_high: the ratio of {name!r} is a mean over a turn's tokens and stays "
                f"near 1, so a range of {widest:g} never takes effect; its paper clips at {low:g} and {high:g}"
            )
    if name == "kl_cov" and updates == 1:
        yield (
            "train.loss.objective: kl_cov penalizes the distance from the policy that sampled, which is 0 in the only "
            "update on a rollout; raise train.minibatches or train.epochs"
        )

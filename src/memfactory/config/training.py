"""Options of every trainer, and their checks before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from memfactory.components import ModuleOptions
from memfactory.config.losses import SUPERVISED, LossOptions, Named
from memfactory.config.objectives import ObjectiveOptions
from memfactory.config.optimizer import LoraOptions, OptimizerOptions
from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.tree import KeyPath
from memfactory.errors import unknown
from memfactory.registry import MODULES, OBJECTIVES, Options, Registry
from memfactory.types import SamplingParams

Overlong = Literal["unknown", "drop", "error"]
Packing = Literal["padded", "packed", "shared"]


class LoopOptions(Options):
    """Options of every trainer.

    A plugin trainer derives its options from these, or from `TrainerOptions` if it trains the language model. The
    properties and methods below describe the trainer to the rest of the program.
    """

    plays: ClassVar[bool] = True
    """Whether the trainer has an agent play tasks of an environment, so that a config must name both."""
    resumable: ClassVar[frozenset[str]] = frozenset(
        {"steps", "save_every", "save_seconds", "keep_checkpoints", "eval_every", "eval_at_start", "eval_at_end"}
    )
    """Options that a resumed run may change."""
    steps: int = Field(100, ge=1)
    """Optimizer steps. With several minibatches or epochs: rollouts, of minibatches x epochs optimizer steps each."""
    save_every: int = Field(50, ge=0)
    """Optimizer steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """The number of checkpoints to keep; older ones are deleted."""
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
        """Add everything that cannot work to `problems`, by key; return warnings. Nothing is loaded yet."""
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

    An option called `loss` (a `LossOptions`) is the loss of the policy. An option called `temperature` counts for
    sampling and for the log-probabilities in the loss. The defaults are the negative log-likelihood and 1.
    """

    resumable: ClassVar[frozenset[str]] = LoopOptions.resumable | {
        "micro_batch_tokens",
        "packing",
        "gradient_checkpointing",
        "logprob_chunk_tokens",
        "trim_last_layer",
        "shard",
    }
    optimizer: OptimizerOptions = OptimizerOptions()
    """The optimizer."""
    lora: LoraOptions | None = None
    """Train adapters instead of the whole model."""
    master_weights: Literal["float32", "bfloat16_stochastic"] = "float32"
    """Type of the weights that the optimizer updates in full fine-tuning. bfloat16_stochastic: bfloat16 with stochastic
    rounding, so that small updates count on average. Adapters are float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    model_dropout: bool = False
    """Apply the dropout of the model's own config. Off by default: the trained log-probabilities are then those of the
    sampler. `lora.dropout` is separate."""
    packing: Packing = "shared"
    """Batch layout: one padded row per conversation (padded), conversations concatenated in one row (packed), or packed
    with shared prefixes computed once (shared). The gradient is the same; every model supports padded."""
    trim_last_layer: bool = True
    """Compute the last layer only at positions that predict a reply token; the gradient is the same."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens in one forward and backward pass, with padding and with shared prefixes once; halved when memory runs
    out. null: 16384; on a CPU at most about 0.8 GiB of activations."""
    logprob_chunk_tokens: int | None = Field(None, ge=1)
    """Reply tokens whose logits are in memory at one time. null: 2048; on a CPU at most 32 MiB of logits."""

    shard: Literal["none", "fsdp2"] = "none"
    """Of several processes (torchrun) each holds the whole model (none), or a part of it: weights, gradients, moments
    and reference (fsdp2). Under `lora` the frozen base is sharded."""

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
                f"{' and '.join(cut)}: replies are sampled from a truncated distribution but scored under the whole one"
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
        """Whether the trained weights are bfloat16 with stochastic rounding."""
        return self.master_weights == "bfloat16_stochastic" and self.lora is None

    @property
    def masters(self) -> Literal["float32", "bfloat16"]:
        """The type of the trained weights."""
        return "bfloat16" if self.stochastic else "float32"

    @model_validator(mode="after")
    def _shards_can_be_trained(self) -> TrainerOptions:
        if self.shard == "none":
            return self
        if self.stochastic:
            raise ValueError("shard 'fsdp2' divides float32 weights; leave master_weights out, or write shard: none")
        kind = self.optimizer.kind
        if self.lora is None and kind not in ("adamw", "auto"):
            raise ValueError(
                f"shard 'fsdp2' divides the moments of optimizer.kind 'adamw'; those of {kind!r} cannot be divided. "
                "Write adamw or auto, or shard: none"
            )
        if self.lora is None and self.policy_loss.moving_reference:
            raise ValueError(
                "shard 'fsdp2' cannot move a sharded reference; leave loss.reference_sync_steps out, train adapters "
                "(lora), or write shard: none"
            )
        return self

    @model_validator(mode="after")
    def _rounding_is_the_optimizers(self) -> TrainerOptions:
        if self.stochastic and self.optimizer.kind == "adamw_8bit":
            raise ValueError(
                "master_weights 'bfloat16_stochastic' needs an optimizer that rounds at random, which bitsandbytes' "
                "adamw_8bit does not; use optimizer.kind adamw_8bit_torchao, adamw_offload or adamw"
            )
        return self


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
    """Refuse modules that learn by themselves: a trainer of the language model does not train them."""
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
    """Warn of clip ranges and penalties that cannot take effect with `updates` updates on a rollout."""
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

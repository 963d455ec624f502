"""Options of the policy loss: objective, clip ranges, KL, importance correction, token weights. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from memfactory.config.objectives import ObjectiveOptions
from memfactory.errors import unknown
from memfactory.registry import OBJECTIVES, Options, Registry

Normalize = Literal["std", "population_std", "batch_std", "mean", "none"]
Weighting = Literal["token", "turn", "trajectory", "prompt", "constant"]
Correction = Literal["auto", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Named = str | dict[str, Any]
CONDITIONAL = ("clip_low", "clip_high", "dual_clip", "sapo_positive", "sapo_negative")
"""The keys of `train.loss` that some objectives do not read."""


def named(value: Named) -> tuple[str, dict[str, Any]]:
    """The name and the options of a component, given as a name or as a mapping of `name` and options."""
    if isinstance(value, str):
        return value, {}
    return str(value.get("name")), {key: option for key, option in value.items() if key != "name"}


def existing(value: Named, registry: Registry[Any]) -> Named:
    """`value`, whose name must be one of `registry`. Raises ValueError with the nearest name."""
    name, _ = named(value)
    if name not in registry.names():
        raise ValueError(unknown(registry.kind, name, registry.names()))
    return value


class LossOptions(Options):
    """The per-token objective and the weights of tokens; formulas in `policy/objective.py`."""

    objective: Named = "ppo"
    """Per-token objective: a name (see `memfactory list objectives`), or a mapping of `name` and its options."""
    clip_low: float = Field(0.2, ge=0)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(0.2, ge=0)
    """The ratio is clipped above at 1 + clip_high (cispo: at clip_high itself)."""
    dual_clip: float | None = Field(None, gt=1)
    """Upper bound of the ratio for negative advantages (dual-clip PPO, arXiv 1912.09729); null: off."""
    entropy_coef: float = Field(0.0, ge=0)
    """Coefficient of the entropy bonus, which is subtracted from the loss of every token."""
    sapo_positive: float = Field(1.0, gt=0)
    """SAPO's temperature for positive advantages (arXiv 2511.20347)."""
    sapo_negative: float = Field(1.05, gt=0)
    """SAPO's temperature for negative advantages."""
    weighting: Weighting = "token"
    """Loss aggregation: equal weight for each token (token, DAPO), turn, trajectory (GRPO) or prompt; constant: Dr.
    GRPO."""
    constant_length: int | None = Field(None, ge=1)
    """Length L of `weighting: constant`: each token weighs 1 / (turns x L)."""
    kl_coef: float = Field(0.0, ge=0)
    """KL coefficient (beta) against the reference; 0: there is no reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per-token KL estimator (Schulman's k1, k2, k3)."""
    kl_unbiased: bool = False
    """Multiply the KL estimate by the token's ratio, so that its gradient is the KL's (arXiv 2512.02556)."""
    kl_in_reward: bool = False
    """Subtract kl_coef times the KL of a trajectory from its reward, instead of a term in the loss."""
    kl_target: float | None = Field(None, gt=0)
    """Adapt the KL coefficient towards this mean KL per token (arXiv 1909.08593); null: constant."""
    kl_horizon: int = Field(10_000, ge=1)
    """With kl_target: the KL coefficient changes by at most 20 % per this many trajectories."""
    reference_sync_steps: int = Field(0, ge=0)
    """Steps between updates of the reference from the policy; 0: the reference is the initial policy."""
    reference_mixup: float = Field(1.0, gt=0, le=1)
    """Weight of the policy in an update of the reference: 1 copies the policy, 0.05 gives a moving average (arXiv
    2404.09656)."""
    sampler_correction: Correction = "auto"
    """Importance sampling correction, policy / sampler, for engines whose log-probabilities are not the trainer's. auto
    is token_truncate with vLLM and below float32, none otherwise."""
    correction_low: float = Field(0.5, ge=0)
    """Masks: tokens or turns with a weight below this are dropped."""
    correction_high: float = Field(2.0, gt=0)
    """Truncation: the largest weight. Masks: tokens or turns with a weight above this are dropped."""
    correction_turn: Literal["geometric", "product"] = "geometric"
    """Sequence corrections: the weight of a turn is the geometric mean or the product of its tokens' weights."""
    mask_truncated: bool = False
    """Turns truncated at their longest length are not trained on; other turns of their trajectory are."""
    _automatic: bool = PrivateAttr(False)

    def without_effect(self) -> Mapping[str, str]:
        correction = self.sampler_correction
        idle = {
            "constant_length": self.weighting != "constant" and f"weighting is {self.weighting}",
            "kl_estimator": self.kl_coef == 0 and "kl_coef is 0",
            "kl_unbiased": self.kl_coef == 0 and "kl_coef is 0",
            "kl_horizon": self.kl_target is None and "kl_target is null",
            "reference_mixup": self.reference_sync_steps == 0 and "reference_sync_steps is 0",
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
    def corrects(self) -> bool:
        """Whether the loss weighs tokens by policy / sampler; `auto` must have been chosen before."""
        return self.sampler_correction not in ("auto", "none")

    @property
    def automatic(self) -> bool:
        """Whether `auto` chose the correction: turns without the sampler's log-probabilities are then not corrected."""
        return self._automatic

    def with_automatic(self, correction: Correction) -> LossOptions:
        """These options with the correction that `auto` stands for."""
        chosen = self.model_copy(update={"sampler_correction": correction})
        chosen._automatic = True
        return chosen

    @property
    def named_objective(self) -> tuple[str, dict[str, Any]]:
        """The objective's name and its own options."""
        return named(self.objective)

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL term, in the loss or in the reward, and so a reference."""
        return self.kl_coef > 0

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_coef > 0 and not self.kl_in_reward

    @property
    def moving_reference(self) -> bool:
        """Whether the reference is updated from the policy."""
        return self.kl_coef > 0 and self.reference_sync_steps > 0

    @field_validator("objective")
    @classmethod
    def _objective_exists(cls, value: Named) -> Named:
        return existing(value, OBJECTIVES)

    @model_validator(mode="after")
    def _kl_options_have_a_kl(self) -> LossOptions:
        using_kl = [
            name
            for name, on in (
                ("kl_in_reward", self.kl_in_reward),
                ("kl_target", self.kl_target is not None),
                ("reference_sync_steps", self.reference_sync_steps > 0),
            )
            if on
        ]
        if using_kl and self.kl_coef == 0:
            raise ValueError(f"{using_kl[0]} needs a kl_coef above 0: without one there is no KL and no reference")
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


SUPERVISED = LossOptions(objective="reinforce")
"""With an advantage of 1 for every turn: the mean negative log-likelihood of the reply tokens."""

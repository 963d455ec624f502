"""Options of the shipped objectives and advantage estimators, and which keys of `train.loss` each objective reads."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from memfactory.registry import Options

CLIP = frozenset({"clip_low", "clip_high"})


class ObjectiveOptions(Options):
    """Options of an objective, written beside its name: `objective: {name: clip_cov, high: 4}`.

    `reads` are the keys of `train.loss` that the objective reads of those that only some objectives do; None: unknown,
    so that no key is reported as ignored. `binds` is the largest clip range at which clipping takes effect in practice
    and `suggested` the published range (low, high), for objectives whose ratio is that of a whole turn.
    """

    reads: ClassVar[frozenset[str] | None] = None
    binds: ClassVar[float | None] = None
    suggested: ClassVar[tuple[float, float] | None] = None


class PpoOptions(ObjectiveOptions):
    """Options of `ppo`."""

    reads = CLIP | {"dual_clip"}


class GspoOptions(ObjectiveOptions):
    """Options of `gspo`."""

    reads = CLIP | {"dual_clip"}
    binds = 0.01
    suggested = (3e-4, 4e-4)


class GmpoOptions(ObjectiveOptions):
    """Options of `gmpo`."""

    reads = CLIP


class CispoOptions(ObjectiveOptions):
    """Options of `cispo`."""

    reads = frozenset({"clip_high"})


class SapoOptions(ObjectiveOptions):
    """Options of `sapo`; its temperatures are `train.loss.sapo_positive` and `sapo_negative`."""

    reads = frozenset({"sapo_positive", "sapo_negative"})


class VespoOptions(ObjectiveOptions):
    """Options of `vespo`."""

    reads = frozenset()


class ReinforceOptions(ObjectiveOptions):
    """Options of `reinforce`."""

    reads = CLIP


class ClipCovOptions(ObjectiveOptions):
    """Options of `clip_cov` (arXiv 2505.22617)."""

    reads = CLIP | {"dual_clip"}

    fraction: float = Field(2e-4, gt=0, le=1)
    """The fraction of a step's tokens that lose their gradient, at least one token."""
    low: float = 1.0
    """Only tokens with a covariance above this can be chosen."""
    high: float = 5.0
    """Only tokens with a covariance below this can be chosen."""

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> ClipCovOptions:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}: no covariance lies between them")
        return self


class KlCovOptions(ObjectiveOptions):
    """Options of `kl_cov` (arXiv 2505.22617)."""

    reads = frozenset()

    fraction: float = Field(2e-3, gt=0, le=1)
    """The fraction of a step's tokens, those with the largest covariance, that are penalized; at least one token."""
    penalty: float = Field(1.0, ge=0)
    """Weight of |log r| on the penalized tokens."""


class EstimatorOptions(Options):
    """Options of an advantage estimator, written beside its name: `advantage: {name: my_estimator, strength: 2}`.

    `reads_normalize` says whether `train.normalize` and `train.advantage_epsilon` have a meaning for it.
    """

    reads_normalize: ClassVar[bool] = False


class GroupOptions(EstimatorOptions):
    """Options of `group`; the divisor is `train.normalize`."""

    reads_normalize = True

"""The KL coefficient: constant, or adapted to a target."""

from __future__ import annotations

from memfactory.config.losses import LossOptions

LARGEST_ERROR = 0.2


class KlCoefficient:
    """beta of the KL term or of the KL penalty in the reward. Its state is its value.

    With `kl_target` it is adapted after each step as in arXiv 1909.08593: beta <- beta (1 + e n / kl_horizon), where
    e = clip(KL / kl_target - 1, -0.2, 0.2), KL is the mean over trained tokens of the estimate and n the number of
    trajectories in the step. It stays positive as long as n is below 5 horizons, and is held at 0 below that.
    """

    def __init__(self, options: LossOptions) -> None:
        self.options = options
        self.value = options.kl_coef

    @property
    def adapts(self) -> bool:
        """Whether the coefficient has a target."""
        return self.options.kl_target is not None

    def adapt(self, kl: float, trajectories: int) -> None:
        """Adapt to the KL of one step; nothing without a target."""
        target = self.options.kl_target
        if target is None:
            return
        error = max(-LARGEST_ERROR, min(LARGEST_ERROR, kl / target - 1))
        self.value *= max(0.0, 1 + error * trajectories / self.options.kl_horizon)

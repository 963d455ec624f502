"""The contract of an objective: per-token losses of a micro-batch from log-ratios and advantages.

An objective is one file in this package, or a user's own, with `@OBJECTIVES.register("my_objective")` above its class.
It sees one micro-batch and knows neither its neighbours nor the weights of tokens. A decision over a whole optimizer
step is made before, by `mark`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from memfactory.config.losses import LossOptions
from memfactory.config.objectives import ObjectiveOptions
from memfactory.plugins.boundary import made
from memfactory.registry import OBJECTIVES


@dataclass(frozen=True)
class Terms:
    """The inputs of an objective, [rows, tokens] each, one row per turn.

    `logprobs` are log pi, `log_ratio` d = log pi - log pi_old, clamped to +-20; both 0 off the mask, and only they
    carry a gradient. `advantages` is [rows, 1]. `correction` is the sampler's importance weight, [rows, tokens] or
    [rows, 1]. `marked` (bool) are the tokens that `Objective.mark` chose.
    """

    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    mask: Tensor
    options: LossOptions
    correction: Tensor | None = None
    marked: Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """The result of an objective, [rows, tokens] each: loss and ratio, and the tokens at which a bound took effect.

    `low` and `high` (bool) are those of the lower and the upper bound. Values off the mask do not matter.
    """

    loss: Tensor
    ratio: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class StepTokens:
    """Every trained token of an optimizer step, of all processes, [tokens] each.

    `logprobs` are those of the policy as it is at the start of the step, `log_ratio` theirs against pi_old (0 where
    the step is on-policy), `advantages` those of the tokens' turns.
    """

    logprobs: Tensor
    log_ratio: Tensor
    advantages: Tensor


class Objective(ABC):
    """The loss of every token. `options` are the objective's own, `loss` those of `train.loss`.

    >>> @OBJECTIVES.register("plain")
    ... class Plain(Objective):
    ...     '''-r A, without any clip.'''
    ...
    ...     def parts(self, terms: Terms) -> Parts:
    ...         ratio = terms.log_ratio.exp()
    ...         return Parts(-ratio * terms.advantages, ratio, *nowhere(ratio))

    Set `takes_correction` if the objective applies the sampler's correction by itself, and `marks` if `mark` must be
    called before each optimizer step, which costs one forward pass over the step's turns.
    """

    Options: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions
    takes_correction: ClassVar[bool] = False
    marks: ClassVar[bool] = False

    def __init__(self, options: Any, loss: LossOptions) -> None:
        self.options = options
        self.loss = loss

    @abstractmethod
    def parts(self, terms: Terms) -> Parts:
        """Losses and ratios of a micro-batch."""

    def mark(self, tokens: StepTokens, draw: Random) -> Sequence[int]:
        """The positions in `tokens` of those that `Terms.marked` will name; called only if `marks` is set.

        `draw` is the same in every process, so that all of them choose the same tokens.
        """
        return ()


def make_objective(loss: LossOptions) -> Objective:
    """The objective that `loss` names."""
    name, values = loss.named_objective
    objective: Objective = made(OBJECTIVES, name, OBJECTIVES.options(name).model_validate(values), loss)
    return objective


def nowhere(like: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of an objective that has none."""
    none = torch.zeros_like(like, dtype=torch.bool)
    return none, none

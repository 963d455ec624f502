"""What an objective is: per-token losses of a micro-batch from log-ratios and advantages.

An objective is one file in this package, or a user's own, with `@OBJECTIVES.register("my_objective")` above its class.
It sees one micro-batch and knows neither its neighbours nor how tokens are weighed. What has to be decided over a whole
optimizer step is decided before, by `mark`.
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
    """What an objective is made from, [rows, tokens] each, one row a turn.

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
    """What an objective gives, [rows, tokens] each: loss and ratio, and where its lower and upper bound took effect.

    What stands off the mask does not matter. `low` and `high` are bool.
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

    Set `takes_correction` where the objective applies the sampler's correction by itself, and `marks` where `mark`
    must be asked before each optimizer step, which costs one forward pass over the step's turns.
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
        """The positions in `tokens` of those that `Terms.marked` is to name; asked for only where `marks` is set.

        `draw` is the same in every process, so that all of them choose the same tokens.
        """
        return ()


def make_objective(loss: LossOptions) -> Objective:
    """The objective that `loss` names."""
    name, given = loss.named_objective
    objective: Objective = made(OBJECTIVES, name, OBJECTIVES.options(name).model_validate(given), loss)
    return objective


def nowhere(like: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of an objective that has none."""
    none = torch.zeros_like(like, dtype=torch.bool)
    return none, none

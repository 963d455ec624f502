"""Tokens that an objective chooses over a whole optimizer step, of all processes, before any micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from random import Random

import torch
from accelerate.utils import gather_object

from memfactory.plugins.boundary import guarded
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.objectives.base import Objective, StepTokens


def marked(
    objective: Objective, turns: Sequence[TrainingTurn], logprobs: Sequence[tuple[float, ...]], draw: Random, place: int
) -> list[TrainingTurn]:
    """The turns of process number `place` with the marks of their tokens. All must call it, with equal `draw`.

    `logprobs` are the policy's before the step, for each turn. The choice is made over the tokens of all processes and
    is the same in each, so that it depends on neither micro-batches nor the number of processes.
    """
    own = [
        (now, now if turn.old_logprobs is None else turn.old_logprobs, turn.advantage)
        for turn, now in zip(turns, logprobs, strict=True)
    ]
    parts = [list(part) for part in gather_object([own])]
    rows = list(chain.from_iterable(parts))
    chosen: set[int] = set()
    if rows:
        now = torch.tensor([value for row in rows for value in row[0]], dtype=torch.float64)
        old = torch.tensor([value for row in rows for value in row[1]], dtype=torch.float64)
        credit = torch.tensor([row[2] for row in rows for _ in row[0]], dtype=torch.float64)
        with guarded(type(objective), doing="in marking tokens"):
            chosen = set(objective.mark(StepTokens(now, now - old, credit), draw))
    first = sum(len(row[0]) for part in parts[:place] for row in part)
    with_marks = []
    for turn in turns:
        last = first + len(turn.reply_ids)
        with_marks.append(replace(turn, marks=tuple(position in chosen for position in range(first, last))))
        first = last
    return with_marks

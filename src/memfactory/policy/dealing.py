"""Turns of all processes, dealt to them as micro-batches: as many for each, and of like size.

A sharded model gathers its layers in every pass, so all processes must take their passes together. Each of them deals
the same turns in the same way, so no share is sent:

    turns of process 0, 1, ...  ->  micro-batches, the largest first  ->  rounds of one micro-batch a process

The micro-batches of a round are the nearest in size, since a process waits for the slowest of its round. It knows no
model.
"""

from __future__ import annotations

from collections.abc import Sequence

from memfactory.config.training import Packing
from memfactory.policy.layout import Conversation, input_ids_of, micro_batches

# The search for the smallest budget of tokens ends within this fraction of it, 1 / _NEAR.
_NEAR = 20


def dealt(turns: Sequence[Conversation], packing: Packing, budget: int, processes: int) -> list[list[list[int]]]:
    """Indices of `turns` in rounds of `processes` micro-batches of at most `budget` fed tokens, the largest first.

    There are as few rounds as that budget allows. Within that number the micro-batches are as small as they can be, so
    that no process is left without one while others have much. The last ones of the last round may be empty.
    """
    if not turns:
        return []
    batches = micro_batches(turns, packing, budget)
    rounds = -(-len(batches) // processes)
    # Between `low`, too small a budget, and `high`. A turn is never cut, so none is smaller than the longest.
    low, high = max(len(input_ids_of(turn)) for turn in turns) - 1, budget
    while high - low > max(1, low // _NEAR):
        middle = (low + high) // 2
        smaller = micro_batches(turns, packing, middle)
        if len(smaller) <= rounds * processes:
            batches, high = smaller, middle
        else:
            low = middle
    batches += [[]] * (rounds * processes - len(batches))
    return [batches[first : first + processes] for first in range(0, len(batches), processes)]

"""Weight sync of several processes: the first sends weights to an engine that they share, the others follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memfactory.engines.base import SharedHolder, WeightHolder, Weights
from memfactory.environment import process_count, process_rank
from memfactory.errors import EngineError
from memfactory.policy.processes import of_first_process, wait_for_all


@dataclass(frozen=True)
class Failure:
    """The reason why the first process could not sync weights."""

    reason: str


def sync_weights(engine: WeightHolder, weights: Weights) -> None:
    """Give `engine` the policy's weights. Every process must call it.

    An engine that the processes share takes them from the first one alone. Raises EngineError in all processes if it
    refuses them.
    """
    if process_count() == 1 or not isinstance(engine, SharedHolder):
        engine.update_weights(weights)
        return
    # No process may still wait for replies of the former weights.
    wait_for_all()
    if process_rank() == 0:
        _lead(engine, weights)
        return
    synced: Any = of_first_process(None)
    if isinstance(synced, Failure):
        raise EngineError(synced.reason)
    engine.follow(synced)


def _lead(engine: SharedHolder, weights: Weights) -> None:
    """Sync the weights, and send the others the result."""
    synced: Any
    try:
        engine.update_weights(weights)
        synced = engine.synced()
    except EngineError as error:
        of_first_process(Failure(str(error)))
        raise
    of_first_process(synced)

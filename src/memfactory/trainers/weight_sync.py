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

    An engine that the processes share takes them from the first one alone. If an error of any kind ends that,
    the others raise EngineError with its reason.
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
    except Exception as error:
        # Of any kind: without a word the others would wait for one that never comes.
        of_first_process(Failure(_reason(error)))
        raise
    of_first_process(synced)


def _reason(error: Exception) -> str:
    """The words for the first process's `error` in the other processes."""
    if isinstance(error, EngineError):
        return str(error)
    return f"the first process could not sync weights ({type(error).__name__}: {error})"

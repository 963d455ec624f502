"""How a dataset is evaluated: samples per question, sampling parameters, metrics and the window of episodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from memfactory.config.schema import EvalConfig
from memfactory.engines.options import EngineConfig, HfEngineConfig, OpenAIEngineConfig
from memfactory.types import SamplingParams

WINDOW = 128
"""Episodes in flight at a time. A window puts the first samples on disk long before the last episode begins."""


@dataclass(frozen=True)
class EvaluationSettings:
    """`samples` is the k of avg@k. Empty `metrics`: the environment's defaults for the tasks.

    `sampling_params` are the policy's; other engines keep their own. More unknown scores of a metric than the fraction
    `max_unknown` fail the dataset. `window` is the number of episodes in flight at a time.
    """

    samples: int = 1
    seed: int = 0
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    metrics: tuple[str, ...] = ()
    max_unknown: float = 0.1
    window: int = WINDOW

    @staticmethod
    def from_config(config: EvalConfig) -> EvaluationSettings:
        """The settings of a config's `eval` section, with the default window."""
        return EvaluationSettings(
            samples=config.samples,
            seed=config.seed,
            sampling_params=SamplingParams(config.temperature, config.top_p, config.top_k),
            metrics=config.metrics,
            max_unknown=config.max_unknown_fraction,
        )


def episode_window(engine: EngineConfig) -> int:
    """Twice the batch or concurrency of the engine: the engine stays full, and the first episodes still end early."""
    if isinstance(engine, HfEngineConfig):
        return 2 * engine.max_batch
    return 2 * engine.concurrency if isinstance(engine, OpenAIEngineConfig) else 4 * WINDOW

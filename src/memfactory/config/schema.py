"""The shape of a run's configuration, as `train`, `eval` and `infer` all read it. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from memfactory.engines.options import EngineConfig, HfEngineConfig, ModelConfig
from memfactory.registry import Options
from memfactory.trackers.options import ConsoleConfig, SwanlabConfig, TrackerConfig


@dataclass(frozen=True)
class Component:
    """A registered component as configured: its name and its validated options."""

    name: str
    options: Options


@dataclass(frozen=True)
class AgentSpec(Component):
    """An agent and the module in each of its slots."""

    modules: dict[str, Component]


class EvalConfig(Options):
    """How evaluation samples and scores."""

    samples: int = Field(4, ge=1)
    """Attempts at each question: the k of avg@k."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0: greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling; 0: off."""
    metrics: tuple[str, ...] = ()
    """Registered rewards to report; the first is the headline. Empty: the environment's defaults for the data."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many questions of each dataset."""
    seed: int = 0
    """Seed of the attempts."""


class DataConfig(Options):
    """Which datasets train and evaluate. A dataset is a file, a hub id or a registered generator."""

    train: Component | None = None
    """The training tasks."""
    eval: dict[str, Component] = Field(default_factory=dict)
    """Evaluation sets by the name they are reported under."""
    shuffle: bool = True
    """Go through the training tasks in a new seeded order each epoch."""


class RunConfig(Options):
    """A whole run. `train`, `eval` and `infer` take the same file and ignore the sections they do not use."""

    model: ModelConfig = ModelConfig()
    agent: AgentSpec
    env: Component
    train: Component | None = None
    data: DataConfig = DataConfig()
    engine: EngineConfig = HfEngineConfig()
    engines: dict[str, EngineConfig] = Field(default_factory=dict)
    trackers: tuple[TrackerConfig, ...] = (ConsoleConfig(), SwanlabConfig())
    eval: EvalConfig = EvalConfig()
    plugins: tuple[str, ...] = ()
    seed: int = 0
    output: str | None = None
    """The run folder; null: runs/<config name>-<date>-<time>."""

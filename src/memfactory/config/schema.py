"""The shape of a run's configuration, as `train`, `eval` and `infer` all read it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from memfactory.engines.options import EngineConfig, HfEngineConfig
from memfactory.memory.options import MemoryConfig
from memfactory.model.options import ModelConfig
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
    """Samples of each question: the k of avg@k."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0: greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling; 0: off."""
    metrics: tuple[str, ...] = ()
    """Registered rewards to report; the first is the headline. Empty: the environment's defaults for the data."""
    limit: int | None = Field(None, ge=1)
    """The most questions of each dataset, from its beginning; null: all."""
    baselines: tuple[str | dict[str, object], ...] = ()
    """Agents that `eval` compares with the configured one, with the same model, such as full_context or naive_rag:
    names, or mappings as under `agent:`."""
    seed: int = 0
    """Seed of the samples."""
    max_unknown_fraction: float = Field(0.1, ge=0, le=1)
    """A dataset fails if more than this fraction of a metric's scores is unknown (the judge failed)."""

    def without_effect(self) -> Mapping[str, str]:
        return dict.fromkeys(("top_p", "top_k"), "temperature is 0") if self.temperature == 0 else {}


class DataConfig(Options):
    """Which datasets train and evaluate. A dataset is a file, a hub id or a registered generator."""

    train: Component | None = None
    """The training tasks."""
    eval: dict[str, Component] = Field(default_factory=dict)
    """Evaluation sets by the name they are reported under."""
    shuffle: bool = True
    """Go through the training tasks in a new seeded order each epoch."""


class PlainSections(Options):
    """The sections that are checked by their shape alone."""

    model: ModelConfig = ModelConfig()
    """The model in training, or the one that is evaluated."""
    engine: EngineConfig = HfEngineConfig()
    """The engine of the policy."""
    engines: dict[str, EngineConfig] = Field(default_factory=dict)
    """Further engines by name, for frozen modules and judges."""
    memory: MemoryConfig = MemoryConfig()
    """How memory banks embed and search texts."""
    trackers: tuple[TrackerConfig, ...] = (ConsoleConfig(), SwanlabConfig())
    """Where metrics go; metrics.jsonl is always written."""
    eval: EvalConfig = EvalConfig()
    """How evaluation samples and scores."""
    plugins: tuple[str, ...] = ()
    """Your own components: .py files (relative to the config) or dotted module names, imported before anything else."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all random choices."""
    output: str | None = None
    """The run folder; null: runs/<config name>-<date>-<time>."""


class RunConfig(PlainSections):
    """A whole run. `train`, `eval` and `infer` take the same file and ignore the sections that they do not use."""

    agent: AgentSpec
    """The agent, its options and its modules."""
    env: Component
    """The environment: it turns rows into tasks and rewards episodes."""
    train: Component | None = None
    """The trainer and its options."""
    data: DataConfig = DataConfig()
    """Which datasets train and evaluate."""

    @property
    def trainer_name(self) -> str:
        """The trainer's name; empty without one."""
        return "" if self.train is None else self.train.name


SECTIONS = (
    "model",
    "agent",
    "env",
    "train",
    "data",
    "engine",
    "engines",
    "memory",
    "eval",
    "trackers",
    "plugins",
    "seed",
    "output",
)
"""Every section, in the order in which configs are written."""

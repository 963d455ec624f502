"""MemFactory: train, evaluate and run memory agents, from YAML or from Python.

>>> import memfactory
>>> with memfactory.load_agent("quickstart") as agent:
...     agent.read("Irene lives in Oslo. Klaus paints in olive.")
...     print(agent.ask("Where does Irene live?"))
Oslo

Every name is imported when it is first used: `import memfactory` itself loads neither torch nor pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memfactory.api.agent import LoadedAgent, load_agent
    from memfactory.api.evaluation import EvalOptions, EvaluationResult, evaluate
    from memfactory.api.inference import infer
    from memfactory.api.training import TrainResult, train
    from memfactory.data.base import Dataset, Row
    from memfactory.dialogue import Agent, Ask, LearningModule, Module
    from memfactory.envs.base import Environment, RewardFunction
    from memfactory.episode import Episode
    from memfactory.errors import ConfigError, DataError, EngineError, MemFactoryError, PluginError
    from memfactory.inference import Answer, InferOptions, InferRequest, InferResult, InferWatcher
    from memfactory.memory.bank import Match, MemoryBank
    from memfactory.memory.options import MemoryConfig
    from memfactory.registry import Options
    from memfactory.trainers.base import Trainer
    from memfactory.types import (
        Candidate,
        Event,
        Group,
        MemoryItem,
        Message,
        Reply,
        Reward,
        SamplingParams,
        Task,
        Tokens,
        Trajectory,
        Turn,
        Utterance,
    )

    __version__: str

__all__ = [
    "Agent",
    "Answer",
    "Ask",
    "Candidate",
    "ConfigError",
    "DataError",
    "Dataset",
    "EngineError",
    "Environment",
    "Episode",
    "EvalOptions",
    "EvaluationResult",
    "Event",
    "Group",
    "InferOptions",
    "InferRequest",
    "InferResult",
    "InferWatcher",
    "LearningModule",
    "LoadedAgent",
    "Match",
    "MemFactoryError",
    "MemoryBank",
    "MemoryConfig",
    "MemoryItem",
    "Message",
    "Module",
    "Options",
    "PluginError",
    "Reply",
    "Reward",
    "RewardFunction",
    "Row",
    "SamplingParams",
    "Task",
    "Tokens",
    "TrainResult",
    "Trainer",
    "Trajectory",
    "Turn",
    "Utterance",
    "__version__",
    "evaluate",
    "infer",
    "load_agent",
    "train",
]

_NAMES = {
    "api.agent": "LoadedAgent load_agent",
    "api.evaluation": "EvalOptions EvaluationResult evaluate",
    "api.inference": "infer",
    "api.training": "TrainResult train",
    "data.base": "Dataset Row",
    "dialogue": "Agent Ask LearningModule Module",
    "envs.base": "Environment RewardFunction",
    "episode": "Episode",
    "errors": "ConfigError DataError EngineError MemFactoryError PluginError",
    "inference": "Answer InferOptions InferRequest InferResult InferWatcher",
    "memory.bank": "Match MemoryBank",
    "memory.options": "MemoryConfig",
    "registry": "Options",
    "trainers.base": "Trainer",
    "types": "Candidate Event Group MemoryItem Message Reply Reward SamplingParams Task Tokens Trajectory Turn "
    "Utterance",
}
_MODULES = {name: f"memfactory.{module}" for module, names in _NAMES.items() for name in names.split()}


def _attribute(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("memfactory")
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'memfactory' has no attribute {name!r}")
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # Type checkers report a misspelt name only if the package has no __getattr__.
    __getattr__ = _attribute


def __dir__() -> list[str]:
    return [*__all__]

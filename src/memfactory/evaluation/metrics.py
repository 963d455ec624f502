"""The metrics of an evaluation: rewards by name, and the digest of the rule by which each of them scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from memfactory.engines.base import Engine
from memfactory.envs.base import Environment
from memfactory.envs.rewards.base import RewardFunction
from memfactory.evaluation.fingerprint import digest
from memfactory.plugins.boundary import code_digest, made
from memfactory.registry import REWARDS


def build_metrics(env: Environment, names: Sequence[str], engines: Mapping[str, Engine]) -> dict[str, RewardFunction]:
    """The rewards called `names`: the environment's own if it has one of that name, else one with default options.

    Raises ConfigError for a name that no reward has.
    """
    own = {reward.name: reward for reward in env.rewards}
    return {name: own.get(name) or made(REWARDS, name, REWARDS.options(name)(), engines) for name in names}


def metric_rules(metrics: Mapping[str, RewardFunction]) -> dict[str, str]:
    """A digest of each metric's rule: its options, and the version of this package or the user's own code.

    Judges are left out: their rule is part of the fingerprint of the samples.
    """
    return {name: _rule(metric) for name, metric in metrics.items() if not metric.asks_a_model}


def _rule(metric: RewardFunction) -> str:
    code = code_digest(type(metric)) or metadata.version("memfactory")
    return digest([metric.options.model_dump(mode="json", exclude={"weight"}), code])

"""What is to be evaluated, worked out and checked before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from memfactory.components import ModuleOptions, RewardOptions
from memfactory.config import Resolved, agent_name, dataset_component, with_agent
from memfactory.config.answer_forms import reward_options, unearned
from memfactory.config.datasets import dataset_title, file_stem, locate
from memfactory.config.schema import Component, EvalConfig, RunConfig
from memfactory.errors import ConfigError, unknown
from memfactory.evaluate.fingerprint import judge_fingerprint, sampling_fingerprint
from memfactory.evaluate.records import Fingerprint
from memfactory.registry import REWARDS
from memfactory.types import SamplingParams

log = logging.getLogger("memfactory")


@dataclass(frozen=True)
class Target:
    """One model with one agent to evaluate.

    `label` names its row, `resolved` is its config without what this evaluation does not use, `datasets` what it is
    evaluated on. `metrics` are those asked for (none: the environment's defaults), and those in `judges` ask a model.
    Targets of equal `source` differ in their agents alone: the configured one and its baselines.
    """

    label: str
    source: int
    resolved: Resolved
    datasets: Mapping[str, Component]
    metrics: tuple[str, ...]
    judges: tuple[str, ...]
    sampling_params: SamplingParams
    fingerprint: Fingerprint

    def records_path(self, output: Path, dataset: str) -> Path:
        """Where the samples of `dataset` lie."""
        return output / "samples" / file_stem(self.label) / f"{file_stem(dataset)}.jsonl"


@dataclass(frozen=True)
class Settings:
    """What the command line says in place of the configs' `eval` sections; None or empty: as configured."""

    samples: int | None = None
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    judge: bool = False
    baselines: tuple[str | dict[str, object], ...] = ()


def prepare(resolved: Sequence[Resolved], data: Sequence[str], settings: Settings) -> list[Target]:
    """The targets, each with a label of its own, each config's baselines behind it.

    Raises ConfigError with every problem of all of them.
    """
    if not resolved:
        raise ConfigError("nothing to evaluate: name a config, a run folder or a model")
    targets: list[Target] = []
    problems: list[str] = []
    for source, one in enumerate(resolved):
        try:
            settled = _with_settings(one, settings)
            label = _label(one.name, [target.label for target in targets])
            targets.append(_target(settled, data, settings, label, source))
            for agent in settled.config.eval.baselines:
                own = _label(f"{label} {agent_name(agent)}", [target.label for target in targets])
                targets.append(_target(with_agent(settled, agent), data, settings, own, source))
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(problems)
    return targets


def _target(resolved: Resolved, data: Sequence[str], settings: Settings, label: str, source: int) -> Target:
    problems: list[str] = []
    asked = resolved.config.eval.metrics
    problems += [unknown("metric", name, REWARDS.names()) for name in asked if name not in REWARDS.names()]
    judges = tuple(name for name in asked if name in REWARDS.names() and asks_engine(name))
    if settings.judge and not judges:
        judges = _default_judges(resolved.config)
        problems += [] if judges else ["--judge: there is no registered reward that asks a model"]
    options = {name: _judge_options(resolved.config, name) for name in judges}
    engines = {name: str(given.model_dump()["engine"]) for name, given in options.items()}
    problems += [
        f"{name}: the judge asks the engine {engine!r}, but {unknown('engine', engine, resolved.config.engines)} "
        "Add it under `engines:`."
        for name, engine in engines.items()
        if engine not in resolved.config.engines
    ]
    datasets: dict[str, Component] = {}
    for spec in data or resolved.config.data.eval:
        try:
            title, component = _dataset(resolved, spec)
            same = next((other for other in datasets if file_stem(other) == file_stem(title)), None)
            if same is not None:
                called = repr(title) if same == title else f"{same!r} and {title!r}, which differ in signs alone"
                problems.append(f"two datasets are called {called}; name them apart under data.eval in the config")
            datasets[title] = component
        except ConfigError as error:
            problems += error.problems
    if not datasets and not problems:
        problems.append("no dataset to evaluate on: add --data NAME_OR_FILE, or sets under data.eval in the config")
    if problems:
        raise ConfigError(problems)
    metrics = [name for name in (*asked, *judges) if name in REWARDS.names()]
    for name, reason in unearned(resolved.config.agent, reward_options(_reward_entries(resolved.config), metrics)):
        log.warning("%s: the metric %s %s.", label, name, reason)
    settled = resolved.config.eval
    sampling_params = SamplingParams(settled.temperature, settled.top_p, settled.top_k)
    pruned = without_unused(resolved, engines)
    judged_by = [judge_fingerprint(pruned, options[name], engine) for name, engine in engines.items()]
    return Target(
        label=label,
        source=source,
        resolved=pruned,
        datasets=datasets,
        metrics=asked,
        judges=judges,
        sampling_params=sampling_params,
        fingerprint={
            **sampling_fingerprint(pruned, sampling_params, settled.seed),
            "judge": ", ".join(judged_by) or None,
        },
    )


def asks_engine(reward: str) -> bool:
    """Whether the reward of that name asks a model."""
    return bool(REWARDS.get(reward).asks_a_model)


def _with_settings(resolved: Resolved, settings: Settings) -> Resolved:
    given = {
        "samples": settings.samples,
        "limit": settings.limit,
        "metrics": settings.metrics or None,
        "baselines": settings.baselines or None,
    }
    update = {name: value for name, value in given.items() if value is not None}
    try:
        section = EvalConfig.model_validate({**resolved.config.eval.model_dump(), **update})
    except ValidationError as error:
        raise ConfigError([f"--{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()]) from None
    values = {**resolved.values, "eval": section.model_dump(mode="json")}
    return replace(resolved, config=resolved.config.model_copy(update={"eval": section}), values=values)


def _dataset(resolved: Resolved, spec: str) -> tuple[str, Component]:
    """The dataset that `spec` names and the name it is reported under."""
    known = resolved.config.data.eval
    if spec in known:
        return spec, known[spec]
    try:
        component = dataset_component(spec, resolved.base_dir)
    except ConfigError as error:
        sets = f" data.eval of {resolved.name} has: {', '.join(known)}." if known else ""
        raise ConfigError(f"--data {spec}: {str(error).rstrip('.')}.{sets}") from None
    path = getattr(component.options, "path", None)
    if isinstance(path, str) and locate(path, resolved.base_dir) is None:
        raise ConfigError(f"--data {spec}: there is no file {path!r}")
    return dataset_title({"name": component.name, **component.options.model_dump()}), component


def _label(name: str, taken: Sequence[str]) -> str:
    label, number = name, 1
    while file_stem(label) in map(file_stem, taken):
        number += 1
        label = f"{name}-{number}"
    return label


def _reward_entries(config: RunConfig) -> dict[str, float | dict[str, object]]:
    return dict(getattr(config.env.options, "rewards", {}))


def _default_judges(config: RunConfig) -> tuple[str, ...]:
    """The judge that the environment is configured with, else the first one registered."""
    existing = [name for name in REWARDS.names() if asks_engine(name)]
    own = [name for name in _reward_entries(config) if name in existing]
    return tuple((own or existing)[:1])


def _judge_options(config: RunConfig, judge: str) -> RewardOptions:
    entry = _reward_entries(config).get(judge, {})
    options = REWARDS.options(judge).model_validate(entry if isinstance(entry, dict) else {"weight": entry})
    assert isinstance(options, RewardOptions)
    return options


def without_unused(resolved: Resolved, judge_engines: Mapping[str, str]) -> Resolved:
    """The config without the judges that are not asked and the engines that nobody asks."""
    config = resolved.config
    rewards = {
        name: entry for name, entry in _reward_entries(config).items() if name in judge_engines or not asks_engine(name)
    }
    asked = {*judge_engines.values()} | {
        module.options.engine for module in config.agent.modules.values() if isinstance(module.options, ModuleOptions)
    }
    env = replace(config.env, options=config.env.options.model_copy(update={"rewards": rewards}))
    engines = {name: engine for name, engine in config.engines.items() if name in asked}
    return replace(resolved, config=config.model_copy(update={"env": env, "engines": engines}))

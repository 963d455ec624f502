"""The targets of an evaluation, resolved and checked before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from memfactory.components import ModuleOptions
from memfactory.config import Resolved, agent_name, dataset_component, with_agent
from memfactory.config.answer_forms import options_of_reward, reward_options, unearned
from memfactory.config.datasets import dataset_title, file_stem, locate
from memfactory.config.schema import Component, EvalConfig, RunConfig
from memfactory.errors import ConfigError, unknown
from memfactory.evaluation.fingerprint import judge_fingerprint, sampling_fingerprint
from memfactory.evaluation.records import Fingerprint
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.registry import REWARDS, Options

log = logging.getLogger("memfactory")


@dataclass(frozen=True)
class EvalOverrides:
    """Options of the command line that replace the configs' `eval` sections; None or empty: as configured.

    `data` names sets of the configs' `data.eval`, files, hub ids or registered datasets (empty: all of `data.eval`).
    `judge` adds a judge to the metrics. `baselines` are further agents that each model is evaluated with.
    """

    data: tuple[str, ...] = ()
    samples: int | None = None
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    judge: bool = False
    baselines: tuple[str | dict[str, object], ...] = ()


@dataclass(frozen=True)
class Target:
    """One model with one agent to evaluate on `datasets`.

    `label` names its row in the tables. `resolved` is its config without the parts that this evaluation does not use.
    `settings.metrics` are the requested metrics (empty: the environment's defaults); `judges` are the metrics that ask
    a model. Targets of equal `source` differ in their agents alone: the configured one and its baselines.
    """

    label: str
    source: int
    resolved: Resolved
    datasets: Mapping[str, Component]
    settings: EvaluationSettings
    judges: tuple[str, ...]
    fingerprint: Fingerprint

    def records_path(self, output: Path, dataset: str) -> Path:
        """The file with the samples of `dataset`."""
        return output / "samples" / file_stem(self.label) / f"{file_stem(dataset)}.jsonl"


def prepare(resolved: Sequence[Resolved], overrides: EvalOverrides) -> list[Target]:
    """The targets, each config followed by its baselines, under distinct labels.

    Raises ConfigError with the problems of all of them.
    """
    if not resolved:
        raise ConfigError("nothing to evaluate: name a config, a run folder or a model")
    targets: list[Target] = []
    problems: list[str] = []
    for source, one in enumerate(resolved):
        try:
            configured = _with_overrides(one, overrides)
            label = _label(one.name, [target.label for target in targets])
            targets.append(_target(configured, overrides, label, source))
            for agent in configured.config.eval.baselines:
                own = _label(f"{label} {agent_name(agent)}", [target.label for target in targets])
                targets.append(_target(with_agent(configured, agent), overrides, own, source))
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(problems)
    return targets


def _target(resolved: Resolved, overrides: EvalOverrides, label: str, source: int) -> Target:
    config = resolved.config
    problems: list[str] = []
    requested = config.eval.metrics
    existing = [name for name in requested if name in REWARDS.names()]
    problems += [unknown("metric", name, REWARDS.names()) for name in requested if name not in existing]
    judges = tuple(name for name in existing if asks_engine(name))
    if overrides.judge and not judges:
        judges = _default_judges(config)
        problems += [] if judges else ["--judge: no registered reward asks a model"]
    options = {name: _judge_options(config, name) for name in judges}
    engines = {name: str(judge.model_dump()["engine"]) for name, judge in options.items()}
    problems += [
        f"{name}: the judge asks the engine {engine!r}, but {unknown('engine', engine, config.engines)} "
        "Add it under `engines:`."
        for name, engine in engines.items()
        if engine not in config.engines
    ]
    datasets = _datasets(resolved, overrides.data, problems)
    if problems:
        raise ConfigError(problems)
    for name, reason in unearned(config.agent, reward_options(_reward_entries(config), [*existing, *judges])):
        log.warning("%s: the metric %s %s.", label, name, reason)
    settings = EvaluationSettings.from_config(config.eval)
    pruned = without_unused(resolved, engines)
    judge_digests = [judge_fingerprint(pruned, options[name], engine) for name, engine in engines.items()]
    fingerprint = sampling_fingerprint(pruned, settings.sampling_params, settings.seed)
    return Target(
        label=label,
        source=source,
        resolved=pruned,
        datasets=datasets,
        settings=settings,
        judges=judges,
        fingerprint={**fingerprint, "judge": ", ".join(judge_digests) or None},
    )


def _datasets(resolved: Resolved, names: Sequence[str], problems: list[str]) -> dict[str, Component]:
    """The datasets called `names` (empty: the config's `data.eval`) by title; `problems` gains those of the others."""
    datasets: dict[str, Component] = {}
    for name in names or resolved.config.data.eval:
        try:
            title, component = _dataset(resolved, name)
        except ConfigError as error:
            problems += error.problems
            continue
        same = next((other for other in datasets if file_stem(other) == file_stem(title)), None)
        if same is not None:
            titles = repr(title) if same == title else f"{same!r} and {title!r}, which differ in punctuation alone"
            problems.append(f"two datasets are called {titles}; give them different names under data.eval")
        datasets[title] = component
    if not datasets and not problems:
        problems.append("no dataset to evaluate on: add --data NAME_OR_FILE, or sets under data.eval in the config")
    return datasets


def asks_engine(reward: str) -> bool:
    """Whether the reward called `reward` asks a model."""
    return bool(REWARDS.get(reward).asks_a_model)


def _with_overrides(resolved: Resolved, overrides: EvalOverrides) -> Resolved:
    options = {
        "samples": overrides.samples,
        "limit": overrides.limit,
        "metrics": overrides.metrics or None,
        "baselines": overrides.baselines or None,
    }
    update = {name: value for name, value in options.items() if value is not None}
    try:
        section = EvalConfig.model_validate({**resolved.config.eval.model_dump(), **update})
    except ValidationError as error:
        raise ConfigError([f"--{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()]) from None
    values = {**resolved.values, "eval": section.model_dump(mode="json")}
    return replace(resolved, config=resolved.config.model_copy(update={"eval": section}), values=values)


def _dataset(resolved: Resolved, name: str) -> tuple[str, Component]:
    """The title in reports and the dataset of a set in `data.eval`, a file, a hub id or a registered dataset."""
    sets = resolved.config.data.eval
    if name in sets:
        return name, sets[name]
    try:
        component = dataset_component(name, resolved.base_dir)
    except ConfigError as error:
        known = f" data.eval of {resolved.name} has: {', '.join(sets)}." if sets else ""
        raise ConfigError(f"--data {name}: {str(error).rstrip('.')}.{known}") from None
    path = getattr(component.options, "path", None)
    if isinstance(path, str) and locate(path, resolved.base_dir) is None:
        raise ConfigError(f"--data {name}: there is no file {path!r}")
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
    """The judge among the environment's rewards, else the first one registered."""
    registered = [name for name in REWARDS.names() if asks_engine(name)]
    own = [name for name in _reward_entries(config) if name in registered]
    return tuple((own or registered)[:1])


def _judge_options(config: RunConfig, judge: str) -> Options:
    return options_of_reward(judge, _reward_entries(config).get(judge, {}))


def without_unused(resolved: Resolved, judge_engines: Mapping[str, str]) -> Resolved:
    """The config without the judges and engines that this evaluation does not ask."""
    config = resolved.config
    rewards = {
        name: entry for name, entry in _reward_entries(config).items() if name in judge_engines or not asks_engine(name)
    }
    used = {*judge_engines.values()} | {
        module.options.engine for module in config.agent.modules.values() if isinstance(module.options, ModuleOptions)
    }
    env = replace(config.env, options=config.env.options.model_copy(update={"rewards": rewards}))
    engines = {name: engine for name, engine in config.engines.items() if name in used}
    return replace(resolved, config=config.model_copy(update={"env": env, "engines": engines}))

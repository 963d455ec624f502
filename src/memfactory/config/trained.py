"""Whether the configured trainer trains what the config says it does, with the loss and temperature that it says."""

from __future__ import annotations

from collections.abc import Iterator

from memfactory.components import ModuleOptions
from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.training import GrpoOptions, LoopOptions, SftOptions, TrainerOptions
from memfactory.registry import MODULES, TRAINERS, Options

_BASES = (
    "GrpoOptions (sampled replies and rewards), SftOptions (conversations) or LoopOptions (modules that learn by "
    "themselves), all of memfactory.config.training"
)


def check_trained(config: RunConfig, problems: Problems) -> list[str]:
    """Note in `problems` what the trainer would train otherwise than the config says; what deserves a word is
    returned."""
    if config.train is None:
        return []
    wrong = _strange_options(TRAINERS.options(config.train.name))
    if wrong is not None:
        problems.add(("train", "name"), f"trainer {config.train.name!r} cannot be used: {wrong}")
        return []
    if isinstance(config.train.options, GrpoOptions):
        _untrained(config, config.train.name, problems)
        return []
    return [] if isinstance(config.train.options, TrainerOptions) else list(_spoken(config))


def _strange_options(options: type[Options]) -> str | None:
    """Why a trainer with such options would not train as they say; None where it would."""
    if not issubclass(options, LoopOptions):
        return f"its options ({options.__name__}) derive from none of {_BASES}"
    if issubclass(options, TrainerOptions) and not issubclass(options, GrpoOptions | SftOptions):
        return (
            f"its options ({options.__name__}) derive from TrainerOptions alone, so that the policy would be trained "
            f"with the supervised loss at temperature 1.0 whatever they say; derive them from {_BASES}"
        )
    return None


def _untrained(config: RunConfig, trainer: str, problems: Problems) -> None:
    """A module that learns by itself is left as it is by a trainer of the language model."""
    for slot, module in config.agent.modules.items():
        options = module.options
        if not MODULES.get(module.name).learns_itself or not isinstance(options, ModuleOptions):
            continue
        if options.interface != "inference":
            problems.add(
                ("agent", "modules", slot, "name"),
                f"{module.name!r} learns by itself, so trainer {trainer!r} does not train it; use `train: online`, or "
                "`interface: inference` to keep it as it is",
            )


def _spoken(config: RunConfig) -> Iterator[str]:
    """Where the language model stays as it is, a module of its own cannot be trained through it."""
    assert config.train is not None
    for slot, module in config.agent.modules.items():
        asks, options = MODULES.get(module.name).steps, module.options
        if asks and isinstance(options, ModuleOptions) and options.interface == "rollout":
            yield (
                f"agent.modules.{slot}.interface: trainer {config.train.name!r} leaves the language model as it is, so "
                "`rollout` trains nothing"
            )

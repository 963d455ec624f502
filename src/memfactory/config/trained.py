"""The options of the configured trainer, and its own checks."""

from __future__ import annotations

from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.training import LoopOptions
from memfactory.registry import TRAINERS


def trainer_options(config: RunConfig) -> LoopOptions | None:
    """The options of the configured trainer; None without one. The registry refuses options of another base."""
    options = None if config.train is None else config.train.options
    return options if isinstance(options, LoopOptions) else None


def options_of_trainer(name: object) -> type[LoopOptions] | None:
    """The options model of the trainer called `name`; None for a name that stands for no usable trainer."""
    if not isinstance(name, str) or name not in TRAINERS.names() or TRAINERS.wrong(name) is not None:
        return None
    options = TRAINERS.options(name)
    return options if issubclass(options, LoopOptions) else None


def check_trained(config: RunConfig, problems: Problems) -> list[str]:
    """Run the trainer's own checks, which add to `problems`; return the warnings."""
    options = trainer_options(config)
    if options is None:
        return []
    kind = type(options)
    try:
        return list(options.check(config, problems))
    except Exception as error:
        if kind.__module__.partition(".")[0] == "memfactory":
            raise
        text = f"{type(error).__name__}: {error}"
        problems.add(("train",), f"the checks of {kind.__name__} ({kind.__module__}) failed: {text}")
        return []

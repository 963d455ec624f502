"""The product's own side of a benchmark: its agent, engine, policy and trainer, with the clock around their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from transformers import PreTrainedModel

from benchmarks.measure import Clock
from memfactory.build import Runtime, build_runtime, training_data
from memfactory.components import POLICY
from memfactory.config import Resolved
from memfactory.config.grpo import GrpoOptions
from memfactory.engines.base import Engine
from memfactory.errors import ConfigError
from memfactory.model.chat import ChatFormat
from memfactory.policy.batch import TrainingTurn, training_turns
from memfactory.policy.policy import Policy
from memfactory.trainers.grpo import GrpoTrainer
from memfactory.types import Group, Sampling


class QuietRun:
    """A run that nobody watches: `trainers.base.Run` without a folder of its own."""

    main = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Not wanted."""

    def evaluate(self, step: int) -> None:
        """Not wanted."""

    def status(self, text: str) -> None:
        """Not wanted."""

    def check(self) -> None:
        """Nobody interrupts it."""

    def save_agent(self, folder: Path) -> None:
        """Not wanted."""


class ProductSide:
    """One training step after the other as `memfactory train` takes them."""

    def __init__(self, resolved: Resolved, folder: Path, spread: float = 0.0) -> None:
        options = self.options = grpo_options(resolved)
        self.stack = endless(build_runtime(resolved, training=True), spread)
        self.policy = Policy(*local_model(self.stack), resolved.config.model, options)
        tasks = GrpoTrainer.read(options, training_data(resolved))
        self.trainer = GrpoTrainer(options, self.stack, self.policy, tasks, QuietRun(folder))
        # The first weights that an engine is handed are not part of any step.
        self.trainer.sync_engines()
        self.clock = Clock(self.policy.device)
        self.groups: list[Group] = []
        self._attach()

    def _attach(self) -> None:
        """Put the clock around the trainer's parts."""
        timed, policy, trainer = self.clock.timed, self.policy, self.trainer
        self.clock.watch(policy.model)
        if policy.reference is not None and policy.reference.copy is not None:
            self.clock.watch(policy.reference.copy)
        collect = trainer.collect

        def collected(step: int) -> tuple[list[Group], int]:
            self.groups, cursor = collect(step)
            return self.groups, cursor

        trainer.collect = timed("decode", collected)
        policy.score_old = timed("old", policy.score_old)
        policy.score_reference = timed("reference", policy.score_reference)
        policy.update = timed("forward", policy.update)
        policy.accelerator.backward = timed("backward", policy.accelerator.backward)
        policy.optimizer.step = timed("optimizer", policy.optimizer.step)
        trainer.sleep_engines = timed("weights", trainer.sleep_engines)
        trainer.sync_engines = timed("weights", trainer.sync_engines)

    def step(self, number: int) -> None:
        """Take optimizer step `number`, counted from 1."""
        self.trainer.seed(number)
        # Every step takes the same tasks, after any other steps.
        self.trainer.state = replace(self.trainer.state, cursor=0, step=number - 1)
        self.trainer.step(number)
        self.trainer.sync_engines()

    def sampled(self, number: int) -> list[Group]:
        """The groups of a step without training on them."""
        return self.trainer.roll_out(0, self.options.prompts_per_step)

    def turns(self) -> list[TrainingTurn]:
        """The turns that the last step trained on."""
        return training_turns(self.groups, self.options)

    def close(self) -> None:
        self.stack.close()


def grpo_options(resolved: Resolved) -> GrpoOptions:
    """The trainer's options. Raises ConfigError for another trainer than grpo."""
    options = None if resolved.config.train is None else resolved.config.train.options
    if not isinstance(options, GrpoOptions):
        raise ConfigError("these benchmarks train with grpo alone")
    return options


def local_model(stack: Runtime) -> tuple[PreTrainedModel, ChatFormat]:
    """The policy's model and chat format. Raises ConfigError if they are not in this process."""
    if stack.model is None or stack.chat is None:
        raise ConfigError("these benchmarks need a model in this process")
    return stack.model, stack.chat


def endless(stack: Runtime, spread: float) -> Runtime:
    """The stack, its policy's replies never ending by themselves, so that every side samples equally much.

    With a `spread` above 0 the longest length of each reply is drawn (log-normal, median a third of the limit)
    from the reply's own seed, so that equal episodes have equal lengths on every side.
    """
    local_model(stack)[1].stop_ids = frozenset()
    engine = stack.engines[POLICY]
    if spread:
        shorten(engine, spread)
    return stack


def shorten(engine: Engine, spread: float) -> None:
    """Let every reply of `engine` end at a length of its own."""
    submit: Callable[..., None] = engine.submit

    def submitted(key: Any, messages: Sequence[Any], sampling: Sampling) -> None:
        submit(key, messages, replace(sampling, max_tokens=sampled_length(sampling, spread)))

    engine.submit = submitted  # type: ignore[method-assign]


def sampled_length(sampling: Sampling, spread: float) -> int:
    """A log-normal length of at most `sampling.max_tokens`, fixed by the reply's seed."""
    normal = numpy.random.default_rng(sampling.seed).standard_normal()
    return int(min(sampling.max_tokens, max(1, sampling.max_tokens / 3 * numpy.exp(spread * normal))))

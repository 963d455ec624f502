"""The loop of every trainer: optimizer steps, evaluation and checkpoints when due, a clean stop.

A trainer takes one step at a time. Logging, evaluation and the user's wish to stop belong to the run around it, which
the trainer sees as a `Run`.
"""

from __future__ import annotations

import logging
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol

import torch
from typing_extensions import TypeVar

from memfactory.build import Runtime, TrainingData
from memfactory.config.training import LoopOptions
from memfactory.engines.base import WeightHolder, Weights
from memfactory.errors import ConfigError
from memfactory.files.atomic import PARTIAL
from memfactory.files.folders import atomic_folder
from memfactory.plan.work import Forecast, Work
from memfactory.plugins.boundary import guarded
from memfactory.policy.policy import Policy
from memfactory.registry import Component
from memfactory.rollout import TextsRead
from memfactory.seeds import stream_seed
from memfactory.trainers.checkpoint import TrainState, load_state, save_checkpoint
from memfactory.trainers.order import TrainingTasks
from memfactory.trainers.weight_sync import sync_weights

log = logging.getLogger("memfactory")


class Interrupted(Exception):
    """The user stops the run; the state of the last whole step is intact."""


class Run(Protocol):
    """The run around a trainer. On processes other than the main one only `check` does anything."""

    main: bool

    @property
    def folder(self) -> Path:
        """The folder of the run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step to the trackers."""
        ...

    def evaluate(self, step: int) -> None:
        """Evaluate the held-out tasks and record the result under `step`."""
        ...

    def status(self, text: str) -> None:
        """Show on the progress display that the run is `text`, such as "training"."""
        ...

    def check(self) -> None:
        """Raise Interrupted if the user has asked this process to stop."""
        ...

    def save_agent(self, folder: Path) -> None:
        """Write memfactory.yaml, the description of the agent, beside weights in `folder`."""
        ...


class Trained(Protocol):
    """The parameters in training: the policy, or modules with parameters of their own. `updates` counts updates."""

    @property
    def process_index(self) -> int:
        """The index of this process."""

    @property
    def process_count(self) -> int:
        """The number of processes."""

    @property
    def updates(self) -> int:
        """The number of updates so far."""

    def wait_for_everyone(self) -> None:
        """Wait until all processes are here."""

    def in_any_process(self, holds: bool) -> bool:
        """Whether `holds` is true in at least one process. Every process must call it."""
        ...

    def weights(self) -> Weights | None:
        """The language model's weights, for engines with a copy of their own; None: training leaves them alone."""
        ...

    def ready_to_sample(self) -> None:
        """Give engines that sample from the policy itself its newest weights. Every process must call it."""
        ...

    @property
    def saves_alone(self) -> bool:
        """Whether the first process can save without the others."""

    def save_masters(self, folder: Path) -> None:
        """Write the parameters exactly as they are."""
        ...

    def help_save_masters(self) -> None:
        """Do the part of another process while the first calls `save_masters`."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write the parameters as they are used after training."""
        ...

    def help_save_pretrained(self) -> None:
        """Do the part of another process while the first calls `save_pretrained`."""
        ...

    def optimizer_state(self) -> dict[str, object]:
        """Everything else that the next update depends on."""
        ...

    def load(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        """Restore the files of `save_masters` in `folder`, and the state of `optimizer_state`."""
        ...


LoopT = TypeVar("LoopT", bound=LoopOptions, default=LoopOptions)
TrainedT = TypeVar("TrainedT", bound=Trained, default=Policy)
DataT = TypeVar("DataT", default=TrainingTasks)


class Trainer(Component[LoopT], Generic[LoopT, TrainedT, DataT], ABC):
    """Takes one optimizer step after the other until `finished`.

    The type arguments are the options, then the parameters in training (default: the policy) and the training data
    (default: tasks). A trainer receives the live objects of the run, never its config::

        @TRAINERS.register("best_of")
        class BestOf(Trainer[BestOfOptions]):
            def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
                task = self.tasks.at(self.state.cursor)
                ...
                measured = self.trained.update(turns)
                return replace(self.state, step=step, cursor=self.state.cursor + 1), measured

    >>> class Idle(Trainer):
    ...     def step(self, step):
    ...         return replace(self.state, step=step), {"reward": 0.0}
    >>> Idle.Options().steps > 0
    True
    """

    Options: ClassVar[type[LoopOptions]] = LoopOptions

    def __init__(self, options: LoopT, runtime: Runtime, trained: TrainedT, tasks: DataT, run: Run) -> None:
        self.options = options
        self.runtime = runtime
        self.trained = trained
        self.tasks = tasks
        self.run = run
        self.state = TrainState()
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._warned_of_cut = False
        # Updates after the last whole step.
        self._whole = trained.updates
        # The version of the weights that each engine with a copy has.
        self._synced: dict[int, int] = {}

    @classmethod
    def read(cls, options: LoopT, data: TrainingData) -> DataT:
        """Read the training data, once in a run and before any weights are loaded.

        Raises DataError that names the rows that cannot be used.
        """
        tasks: Any = TrainingTasks(data.tasks(), data.seed, data.data.shuffle)
        return tasks

    @classmethod
    def plan(cls, options: LoopT, forecast: Forecast) -> Work:
        """The trainer's part of `--dry-run`, from options alone: no weights are loaded."""
        if options.policy is None or not options.plays:
            return Work(options.steps)
        return forecast.played(options.steps)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run, as far as known."""
        return self.options.steps

    @abstractmethod
    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        """Take optimizer step number `step`; return the state after it and its metrics."""

    def finished(self) -> bool:
        """Whether training has ended at `self.state`."""
        return self.state.step >= self.steps

    def conclude(self) -> None:
        """Warn of anything that the finished run shows, such as that nothing was learned."""
        return

    def save_more(self, folder: Path) -> None:
        """Write further state that the next step depends on to a checkpoint's folder; `resume` reads it."""
        return

    def resume(self, checkpoint: Path) -> None:
        """Restore `checkpoint`: parameters, optimizer, random generators, cursor and step."""
        digest = self.state.data
        self.state, optimizer = load_state(checkpoint)
        if digest and self.state.data and digest != self.state.data:
            raise ConfigError(
                f"the training data has changed since {checkpoint} was saved (the digest of its rows was "
                f"{self.state.data}, now it is {digest}), and the order of rows depends on all of them. Restore the "
                f"data, or start a new run from these weights: model.path={checkpoint}"
            )
        self.trained.load(checkpoint, optimizer)
        self._saved_step = self.state.step

    def warn_of_cut(self, step: int, texts: TextsRead) -> None:
        """Warn once in a run that texts are longer than the agent reads."""
        cut = texts.warning(self.runtime.agent.options_by_slot)
        if cut is not None and self.run.main and not self._warned_of_cut:
            self._warned_of_cut = True
            log.warning("step %d: %s. metrics.jsonl has the fraction of every step as texts/dropped", step, cut)

    def sleep_engines(self) -> None:
        """Engines with their own copy of the weights free their memory for the training pass."""
        for engine in self._copies():
            engine.sleep()

    def sync_engines(self) -> None:
        """Send the trained weights to engines with a copy of their own that is out of date. All processes must call it.

        The HF engine generates from the trained weights themselves.
        """
        weights = self.trained.weights()
        if weights is None:
            return
        for engine in self._copies():
            if self._synced.get(id(engine)) != weights.version:
                self.trained.ready_to_sample()
                sync_weights(engine, weights)
                self._synced[id(engine)] = weights.version

    def _copies(self) -> list[WeightHolder]:
        engines = {id(engine): engine for engine in self.runtime.engines.values()}
        return [engine for engine in engines.values() if isinstance(engine, WeightHolder)]

    def train(self) -> None:
        """Train to the end. The last whole step is saved before Interrupted or an error propagates."""
        self._whole = self.trained.updates
        self.sync_engines()
        try:
            self._evaluate_if_due()
            while not self.finished():
                self.check()
                self._take_step()
                self._evaluate_if_due()
                if self.finished() or self._save_is_due():
                    self.save()
        except Interrupted:
            self.save()
            # A launcher ends all processes once the first has ended.
            self.trained.wait_for_everyone()
            raise
        except (Exception, SystemExit):
            self._save_after_error()
            raise
        self.save_final()
        self.conclude()

    def _save_after_error(self) -> None:
        """Save the last whole step. An error in here hides no earlier one."""
        # Between the updates of one step there is no whole step to save.
        if self.trained.updates != self._whole or self.state.step == self._saved_step:
            return
        if not self.trained.saves_alone:
            # The others may be anywhere, and wait for this process there.
            if self.run.main:
                log.warning("a sharded run saves nothing after an error; --resume continues after its last checkpoint")
            return
        try:
            self.save()
        except Exception as error:  # noqa: BLE001 - logged here; the error that led here propagates
            log.warning("the state after step %d could not be saved: %s", self.state.step, error)
            return
        if self.run.main:
            log.warning("the state after step %d is saved; --resume continues from there", self.state.step)

    def check(self) -> None:
        """Raise Interrupted in every process if the user has asked one of them to stop. All must call it."""
        interrupted = False
        try:
            self.run.check()
        except Interrupted:
            interrupted = True
        if self.trained.in_any_process(interrupted):
            raise Interrupted(str(self.run.folder))

    def _take_step(self) -> None:
        self.seed(self.state.step + 1)
        started = time.monotonic()
        before = self.state.seconds
        if self.options.plays:
            self.trained.ready_to_sample()
        with guarded(type(self), doing=f"in step {self.state.step + 1}", letting=(Interrupted,)):
            self.state, metrics = self.step(self.state.step + 1)
        # The step is whole from here on, even if an engine refuses the weights or a tracker the metrics.
        self._whole = self.trained.updates
        self.sync_engines()
        seconds = time.monotonic() - started
        self.state = replace(self.state, seconds=before + seconds)
        self.run.log(self.state.step, {**metrics, "seconds": seconds})

    def _evaluate_if_due(self) -> None:
        """Evaluate if it is due after this step. A resumed run catches up on an evaluation that was interrupted."""
        options, step = self.options, self.state.step
        if step == 0:
            due = options.eval_at_start
        elif self.finished():
            due = options.eval_at_end
        else:
            due = options.eval_every > 0 and step % options.eval_every == 0
        if due:
            self.trained.ready_to_sample()
            # Only the main process evaluates, so only it can be interrupted here; `check` stops the others.
            with suppress(Interrupted):
                self.run.evaluate(step)
            self.check()

    def seed(self, step: int) -> None:
        """Seed the global generators for `step`, so that dropout does not depend on earlier steps."""
        torch.manual_seed(stream_seed(self.runtime.seed, "step", step, self.trained.process_index))

    def _save_is_due(self) -> bool:
        every, seconds = self.options.save_every, self.options.save_seconds
        # Each process has its own clock.
        is_overdue = seconds is not None and self.trained.in_any_process(time.monotonic() - self._saved_at >= seconds)
        return is_overdue or (every > 0 and self.state.step % every == 0)

    def save(self) -> None:
        """Write checkpoints/step-N, unless this step was saved before (or could not be)."""
        if self.state.step == self._saved_step:
            return
        self._saved_at, self._saved_step = time.monotonic(), self.state.step
        if self.run.main:
            save_checkpoint(
                self.run.folder / "checkpoints",
                self.state,
                save_weights=self._save_masters,
                optimizer=self.trained.optimizer_state(),
                keep=self.options.keep_checkpoints,
            )
        else:
            self.trained.help_save_masters()

    def save_final(self) -> None:
        """Write final/: the model or adapter as `from_pretrained` or PEFT loads it, or the modules' parameters."""
        self.trained.wait_for_everyone()
        if self.run.main:
            target = self.run.folder / "final"
            with atomic_folder(target) as working:
                self.trained.save_pretrained(working)
                self.run.save_agent(working)
        else:
            self.trained.help_save_pretrained()
        self.trained.wait_for_everyone()

    def _save_masters(self, folder: Path) -> None:
        self.trained.save_masters(folder)
        self.run.save_agent(folder)
        self.save_more(folder)


def remove_partial(folder: Path) -> None:
    """Delete the partial files of killed saves in a run folder."""
    for path in [*folder.glob(PARTIAL), *folder.glob(f"*/{PARTIAL}")]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

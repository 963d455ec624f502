"""What every trainer shares: the loop over optimizer steps, evaluation and checkpoints when due, a clean stop.

A trainer knows how to take one step. Where metrics go, how held-out tasks are evaluated and whether the user wants to
stop is the run's business, which it is handed as a `Run`.
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
from typing import Any, Protocol

import torch

from memfactory.build import Runtime, TaskReader, reading_env
from memfactory.config import Resolved
from memfactory.config.agent_file import write_agent_file
from memfactory.config.training import LoopOptions
from memfactory.engines.base import WeightHolder, Weights
from memfactory.errors import ConfigError
from memfactory.files.atomic import PARTIAL
from memfactory.files.folders import atomic_folder
from memfactory.plugins.boundary import guarded
from memfactory.rollout import TextsRead
from memfactory.seeds import stream_seed
from memfactory.trainers.checkpoint import TrainState, load_state, save_checkpoint

log = logging.getLogger("memfactory")


class Interrupted(Exception):
    """The user wants the run to stop; the state of the last whole step is intact."""


class Run(Protocol):
    """What a trainer needs of the run around it. On processes other than the main one only `check` does anything."""

    main: bool

    @property
    def folder(self) -> Path: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def evaluate(self, step: int) -> None:
        """Evaluate the held-out tasks and keep the result under `step`."""
        ...

    def status(self, text: str) -> None:
        """What is going on right now, for the progress display."""
        ...

    def check(self) -> None:
        """Raise Interrupted when the user has asked this process to stop."""
        ...


class Trained(Protocol):
    """What a run trains: the policy, or modules with parameters of their own. `updates` counts its changes."""

    @property
    def process_index(self) -> int: ...

    @property
    def process_count(self) -> int: ...

    @property
    def updates(self) -> int: ...

    def wait_for_everyone(self) -> None: ...

    def in_any_process(self, holds: bool) -> bool:
        """Whether `holds` is true in one of the processes at least. Every process must call it."""
        ...

    def weights(self) -> Weights | None:
        """The language model's weights for engines that keep a copy; None: training does not change them."""
        ...

    def save_masters(self, folder: Path) -> None:
        """Write what is trained exactly as it is."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write what is trained as it is used afterwards."""
        ...

    def optimizer_state(self) -> dict[str, object]:
        """All else that the next step depends on."""
        ...

    def load(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        """Go back to what `save_masters` wrote to `folder` and to the state that `optimizer_state` gave."""
        ...


class Trainer(ABC):
    """One optimizer step after the other until `finished`."""

    def __init__(self, resolved: Resolved, options: LoopOptions, stack: Runtime, trained: Trained, run: Run) -> None:
        self.resolved = resolved
        self.config = resolved.config
        self.options = options
        self.stack = stack
        self.trained = trained
        self.run = run
        self.state = TrainState()
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._told_of_cut = False
        # How often what is trained had changed after the last whole step.
        self._whole = trained.updates
        # The version of the weights that each engine with a copy has.
        self._handed: dict[int, int] = {}

    @staticmethod
    def read(resolved: Resolved, options: Any, reader: TaskReader) -> object:
        """Read what is trained on, once in a run and before any weight is loaded: the tasks under `data.train`.

        Raises DataError that names the rows that cannot be used.
        """
        data = resolved.config.data.train
        return None if data is None else reader.read(data, reading_env(resolved), resolved.base_dir)

    @abstractmethod
    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        """Take optimizer step number `step`; the state after it and its metrics."""

    @abstractmethod
    def finished(self) -> bool:
        """Whether `self.state` is the end of training."""

    def conclude(self) -> None:
        """Say what is to be said of the run once it has come to its end."""
        return

    def save_more(self, folder: Path) -> None:
        """Write what else the next step of this trainer depends on to a checkpoint's folder; `resume` reads it."""
        return

    def resume(self, checkpoint: Path) -> None:
        """Go back to `checkpoint`: what is trained, random generators, cursor, step."""
        own = self.state.data
        self.state, optimizer = load_state(checkpoint)
        if own and self.state.data and own != self.state.data:
            raise ConfigError(
                f"the training data is not what it was when {checkpoint} was saved (its rows' digest was "
                f"{self.state.data}, now it is {own}), and the order in which rows are gone through depends on all of "
                f"them. Put the data back, or start a new run from these weights: model.path={checkpoint}"
            )
        self.trained.load(checkpoint, optimizer)
        self._saved_step = self.state.step

    def warn_of_cut(self, step: int, texts: TextsRead) -> None:
        """Say once in a run that texts are longer than what is read of them."""
        cut = texts.warning(self.stack.agent.options_by_slot)
        if cut is not None and self.run.main and not self._told_of_cut:
            self._told_of_cut = True
            log.warning("step %d: %s. metrics.jsonl has the share of every step as texts/dropped", step, cut)

    def rest_engines(self) -> None:
        """Engines with their own copy of the weights give their memory to the training pass."""
        for engine in self._copies():
            engine.sleep()

    def renew_engines(self) -> None:
        """Engines with their own copy of the weights take the trained ones, unless they have them.

        The HF engine speaks with them already.
        """
        weights = self.trained.weights()
        if weights is None:
            return
        for engine in self._copies():
            if self._handed.get(id(engine)) != weights.version:
                engine.update_weights(weights)
                self._handed[id(engine)] = weights.version

    def _copies(self) -> list[WeightHolder]:
        engines = {id(engine): engine for engine in self.stack.engines.values()}
        return [engine for engine in engines.values() if isinstance(engine, WeightHolder)]

    def train(self) -> None:
        """Train to the end. Before Interrupted and errors go on up, the last whole step is saved."""
        self._whole = self.trained.updates
        self.renew_engines()
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
        """Save the last whole step, whatever went wrong after it; what goes wrong here hides no error."""
        # Between the updates of one step there is no whole step to save.
        if self.trained.updates != self._whole or self.state.step == self._saved_step:
            return
        try:
            self.save()
        except Exception as error:  # noqa: BLE001 - told here; the error that led here goes on up
            log.warning("the state after step %d could not be saved: %s", self.state.step, error)
            return
        if self.run.main:
            log.warning("step %d, the last whole one, is saved; --resume goes on from there", self.state.step)

    def check(self) -> None:
        """Raise Interrupted in every process where the user has asked one of them to stop; all must call it."""
        asked = False
        try:
            self.run.check()
        except Interrupted:
            asked = True
        if self.trained.in_any_process(asked):
            raise Interrupted(str(self.run.folder))

    def _take_step(self) -> None:
        self.seed(self.state.step + 1)
        begun = time.monotonic()
        before = self.state.seconds
        with guarded(type(self), doing=f"in step {self.state.step + 1}", letting=(Interrupted,)):
            self.state, metrics = self.step(self.state.step + 1)
        # From here on the step is whole, also if an engine does not take its weights or a tracker its metrics.
        self._whole = self.trained.updates
        self.renew_engines()
        seconds = time.monotonic() - begun
        self.state = replace(self.state, seconds=before + seconds)
        self.run.log(self.state.step, {**metrics, "seconds": seconds})

    def _evaluate_if_due(self) -> None:
        """Evaluate where the options want it after this step; a resumed run makes up for what was interrupted."""
        options, step = self.options, self.state.step
        if step == 0:
            due = options.eval_at_start
        elif self.finished():
            due = options.eval_at_end
        else:
            due = options.eval_every > 0 and step % options.eval_every == 0
        if due:
            # Only the main process evaluates, so only it can be interrupted there; `check` tells the others.
            with suppress(Interrupted):
                self.run.evaluate(step)
            self.check()

    def seed(self, step: int) -> None:
        """Dropout draws from a stream of the step's own, whatever ran before it."""
        torch.manual_seed(stream_seed(self.config.seed, "step", step, self.trained.process_index))

    def _save_is_due(self) -> bool:
        every, seconds = self.options.save_every, self.options.save_seconds
        # Each process has its own clock.
        late = seconds is not None and self.trained.in_any_process(time.monotonic() - self._saved_at >= seconds)
        return late or (every > 0 and self.state.step % every == 0)

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

    def save_final(self) -> None:
        """Write final/: the model or adapter as `from_pretrained` or PEFT loads it, or the modules' parameters."""
        self.trained.wait_for_everyone()
        if self.run.main:
            target = self.run.folder / "final"
            with atomic_folder(target) as working:
                self.trained.save_pretrained(working)
                self._save_agent(working)
        self.trained.wait_for_everyone()

    def _save_masters(self, folder: Path) -> None:
        self.trained.save_masters(folder)
        self._save_agent(folder)
        self.save_more(folder)

    def _save_agent(self, folder: Path) -> None:
        """Write memfactory.yaml, so that the weights are the same agent's wherever they are taken."""
        write_agent_file(folder, self.resolved.values, self.resolved.base_dir)


def remove_partial(folder: Path) -> None:
    """Delete what a killed save left behind in a run folder."""
    for path in [*folder.glob(PARTIAL), *folder.glob(f"*/{PARTIAL}")]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

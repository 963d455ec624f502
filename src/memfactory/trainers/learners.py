"""The modules of an agent that have parameters of their own, as the parameters in training of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load_file, save_file

from memfactory.dialogue import Agent, LearningModule
from memfactory.environment import process_count
from memfactory.episode import Episode
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.files.checkpoints import MODULES
from memfactory.plugins.boundary import broken, guarded


class Learners:
    """The learning modules of `agent` by slot, without frozen ones. Raises ConfigError if the agent has none."""

    process_index = 0
    process_count = 1

    def __init__(self, agent: Agent) -> None:
        if process_count() > 1:
            raise ConfigError("modules learn online in one process; start the run without torchrun or accelerate")
        self.modules = {
            slot: one
            for slot, one in agent.modules.items()
            if isinstance(one, LearningModule) and one.options.interface != "inference"
        }
        if not self.modules:
            raise ConfigError(
                "agent: none of its modules learns by itself, so there is nothing to train online; write for example "
                "`modules: {retriever: linear_reranker}`"
            )
        self.updates = 0

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within it the modules explore, and record their choices to learn from."""
        for module in self.modules.values():
            module.learning = True
        try:
            yield
        finally:
            for module in self.modules.values():
                module.learning = False

    def learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Every module learns from these episodes; returns metrics as slot/name. An error restores all states."""
        measured: dict[str, dict[str, float]] = {}
        before = self.states()
        self.updates += 1
        try:
            for slot, module in self.modules.items():
                with guarded(type(module), doing="in learning"):
                    measured[slot] = module.learn(episodes)
        except Exception:
            # Any error: a module that has learned before another failed would be saved with half a step.
            for slot, module in self.modules.items():
                module.load_state(before[slot])
            self.updates -= 1
            raise
        return {f"{slot}/{name}": value for slot, metrics in measured.items() for name, value in metrics.items()}

    def states(self) -> dict[str, dict[str, numpy.ndarray]]:
        """Copies of the states of all modules, by slot."""
        return {
            slot: {name: numpy.array(value) for name, value in _state(module).items()}
            for slot, module in self.modules.items()
        }

    def wait_for_everyone(self) -> None:
        """There is one process."""

    def in_any_process(self, holds: bool) -> bool:
        return holds

    def weights(self) -> None:
        """The language model is not trained."""

    def ready_to_sample(self) -> None:
        """The language model is not trained."""

    saves_alone = True

    def help_save_masters(self) -> None:
        """There is one process."""

    def help_save_pretrained(self) -> None:
        """There is one process."""

    def save_masters(self, folder: Path) -> None:
        """Write modules/<slot>.safetensors for each module with a state."""
        (folder / MODULES).mkdir()
        for slot, module in self.modules.items():
            state = {name: numpy.ascontiguousarray(array) for name, array in _state(module).items()}
            if state:
                save_file(state, folder / MODULES / f"{slot}.safetensors")

    def save_pretrained(self, folder: Path) -> None:
        self.save_masters(folder)

    def optimizer_state(self) -> dict[str, object]:
        return {"updates": self.updates}

    def load(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        """Restore the files of `save_masters`. Raises MemFactoryError for files that do not fit these modules."""
        for slot, module in self.modules.items():
            path = folder / MODULES / f"{slot}.safetensors"
            try:
                with guarded(type(module), doing="in `load_state`", letting=(ValueError,)):
                    module.load_state(load_file(path) if path.is_file() else {})
            except ValueError as error:
                raise MemFactoryError(f"{path} does not fit the module of slot {slot!r}: {error}") from None
        self.updates = int(optimizer["updates"])


def _state(module: LearningModule) -> Mapping[str, numpy.ndarray]:
    """The state of a module. Raises PluginError if a plugin's fails or returns no mapping."""
    with guarded(type(module), doing="in `state`"):
        state: object = module.state()
    if isinstance(state, Mapping):
        return state
    raise broken(type(module), "state", f"returned {state!r:.60}, not a mapping of numpy arrays by name")

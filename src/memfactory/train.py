"""`memfactory train`: the run folder, its trackers, held-out evaluation and a clean stop around a trainer."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType

from memfactory.build import Stack, TaskReader, build_stack
from memfactory.config import Resolved, load_values
from memfactory.config.training import GrpoOptions, LoopOptions, OnlineOptions, TrainerOptions
from memfactory.environment import describe_environment
from memfactory.errors import ConfigError
from memfactory.evaluate.attempts import evaluate_tasks
from memfactory.evaluate.results import EvalHistory
from memfactory.evaluate.targets import reading_env
from memfactory.figures import draw_run
from memfactory.files import write_json, write_whole
from memfactory.registry import TRAINERS
from memfactory.trackers.base import State
from memfactory.trackers.fanout import Trackers
from memfactory.trainers.base import Interrupted, Trained, Trainer, remove_partial
from memfactory.trainers.checkpoint import checkpoints
from memfactory.trainers.learners import Learners
from memfactory.trainers.policy import Policy
from memfactory.trainers.processes import leave_processes
from memfactory.trainers.weights import check_engine
from memfactory.types import Decoding, Task

log = logging.getLogger("memfactory")
# A resumed run may differ from its first part in these keys; every other difference would make it another run.
RESUMABLE = (
    "output",
    "trackers",
    "train.steps",
    "train.valid_groups",
    "train.save_every",
    "train.save_seconds",
    "train.keep_checkpoints",
    "train.eval_every",
    "train.eval_at_start",
    "train.eval_at_end",
    "train.transcripts_per_step",
    "train.micro_batch_tokens",
    "train.packing",
    "train.trim_last_layer",
)


def run_training(resolved: Resolved, *, resume: str | None = None) -> Path:
    """Train what `resolved` says and return the run folder.

    `resume` is None for a new run, "auto" for the newest checkpoint of the run folder (from the start where there is
    none), or the path of a run folder or checkpoint. Raises ConfigError where the folder and `resume` do not fit,
    `Interrupted` when the user stopped the run (its last whole step is saved).
    """
    if resolved.config.train is None:
        raise ConfigError("train: this config names no trainer; add for example `train: grpo_single_gpu`")
    options = resolved.config.train.options
    assert isinstance(options, LoopOptions)
    folder, checkpoint = run_folder(resolved, resume)
    reader = TaskReader()
    if isinstance(options, GrpoOptions | OnlineOptions):
        # A row that cannot be read is told before minutes are spent on loading weights.
        for component in (resolved.config.data.train, *resolved.config.data.eval.values()):
            if component is not None:
                reader.read(component, reading_env(resolved), resolved.base_dir)
    stack = build_stack(resolved, training=isinstance(options, TrainerOptions), reader=reader)
    try:
        trained = _trained(resolved, options, stack)
        run = LiveRun(resolved, folder, stack, main=trained.process_index == 0, alone=trained.process_count == 1)
        trainer: Trainer = TRAINERS.get(resolved.config.train.name)(resolved, options, stack, trained, run)
        if checkpoint is not None:
            trainer.resume(checkpoint)
            if trainer.finished() and run.main:
                log.warning("nothing is left to do after step %d; raise train.steps to go on", trainer.state.step)
        with run.open(trainer, resumed=checkpoint is not None):
            trainer.train()
    finally:
        stack.close()
        leave_processes()
    return folder


def _trained(resolved: Resolved, options: LoopOptions, stack: Stack) -> Trained:
    """What the trainer trains: the language model, or the modules that learn by themselves."""
    if not isinstance(options, TrainerOptions):
        return Learners(stack.agent)
    assert stack.model is not None and stack.chat is not None
    policy = Policy(stack.model, stack.chat, resolved.config.model, options, seed=resolved.config.seed)
    check_engine(policy.network, resolved.config.engine)
    return policy


def run_folder(resolved: Resolved, resume: str | None) -> tuple[Path, Path | None]:
    """The run folder and the checkpoint to go on from (None: from the start)."""
    name = resolved.name
    if resume not in (None, "auto"):
        given = Path(resume)
        if not given.is_dir():
            raise ConfigError(f"--resume {given}: there is no such folder")
        folder = given.parent.parent if given.parent.name == "checkpoints" else given
        found = [given] if folder != given else checkpoints(folder / "checkpoints")
    else:
        if resolved.config.output is not None:
            folder = Path(resolved.config.output)
        elif resume == "auto" and (earlier := sorted(Path("runs").glob(f"{name}-{'[0-9]' * 8}-{'[0-9]' * 6}"))):
            folder = earlier[-1]
        else:
            folder = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
        found = checkpoints(folder / "checkpoints")
    if resume is None:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"the run folder {folder} is not empty. Go on with it by --resume, or name another by output=..."
            )
        return folder, None
    if (folder / "config.yaml").is_file():
        refuse_another_config(folder, resolved.values)
    return folder, found[-1] if found else None


def refuse_another_config(folder: Path, values: Mapping[str, object]) -> None:
    """Raise ConfigError when the run in `folder` was started with settings that make it another run."""
    before = _leaves(load_values(folder / "config.yaml"))
    now = _leaves(values)
    different = [
        f"{key}: {before.get(key)!r} in {folder}, now {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not any(key == k or key.startswith(k + ".") for k in RESUMABLE)
    ]
    if different:
        raise ConfigError([f"{folder} cannot be resumed with a different configuration:", *different])


def _leaves(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, Mapping) and value:
        return {k: v for name, part in value.items() for k, v in _leaves(part, f"{path}{name}.").items()}
    return {path.rstrip("."): list(value) if isinstance(value, tuple) else value}


@dataclass
class LiveRun:
    """A run while it is going on; what a trainer sees of it is `trainers.base.Run`."""

    resolved: Resolved
    folder: Path
    stack: Stack
    main: bool = True
    alone: bool = True
    interrupted: bool = False
    trackers: Trackers | None = None
    history: EvalHistory = field(default_factory=EvalHistory)
    tasks: dict[str, tuple[Task, ...]] = field(default_factory=dict)

    @contextmanager
    def open(self, trainer: Trainer, *, resumed: bool) -> Iterator[None]:
        """Make the folder, start the trackers, catch Ctrl-C; close all of it however training ends."""
        config = self.resolved.config
        for name, component in config.data.eval.items():
            self.tasks[name] = self.stack.tasks(component, self.resolved.base_dir)
        if not self.main:
            with self._signals():
                yield
            return
        self._prepare_folder(trainer.state.step, resumed)
        total = trainer.options.steps
        self.trackers = Trackers(config.trackers, self.folder, self.resolved.values, total, trainer.state.step)
        state: State = "success"
        error: str | None = None
        try:
            with self._signals():
                yield
        except Interrupted:
            state = "aborted"
            raise
        except BaseException as problem:
            state, error = "crashed", f"{type(problem).__name__}: {problem}"
            raise
        finally:
            self.trackers.finish(state, error)
            draw_run(self.folder)

    def _prepare_folder(self, step: int, resumed: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self.folder)
        write_whole(self.folder / "config.yaml", self.resolved.to_yaml())
        start = {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(["memfactory", *sys.argv[1:]]),
            "seed": self.resolved.config.seed,
            "from_step": step,
            **describe_environment(),
        }
        path = self.folder / "environment.json"
        write_json(path, {"sessions": [*(_sessions(path) if resumed else []), start]})
        self.history = EvalHistory.load(self.folder / "eval.json", until_step=step) if resumed else EvalHistory()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks for a clean stop, the second stops at once.

        Not so with several processes, which stop together: their launcher passes on a signal that they already have.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self.interrupted and self.alone:
                raise KeyboardInterrupt
            if self.main and not self.interrupted:
                again = " (again to stop at once and lose it)" if self.alone else ""
                log.warning("stopping: the last whole step will be saved%s", again)
            self.interrupted = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        if self.interrupted:
            raise Interrupted(str(self.folder))

    def status(self, text: str) -> None:
        if self.trackers is not None:
            self.trackers.status(text)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.trackers is not None:
            self.trackers.log(step, metrics)

    def evaluate(self, step: int) -> None:
        """Evaluate every held-out set and keep the result in eval.json; the weights of all processes are equal."""
        if not self.main or self.history.has(step):
            return
        settings = self.resolved.config.eval
        decoding = Decoding(settings.temperature, settings.top_p, settings.top_k)
        results = {}
        for name, tasks in self.tasks.items():
            results[name] = evaluate_tasks(
                self.stack.agent,
                self.stack.env,
                tasks[: settings.limit],
                self.stack.engines,
                metrics=settings.metrics,
                samples=settings.samples,
                decodings=self.stack.drawn_with(decoding),
                seed=settings.seed,
                max_unknown_share=settings.max_unknown_share,
                on_progress=partial(self._progress, name),
            )
        if results:
            self.history.add(step, results)
            self.history.save(self.folder / "eval.json")
            self.log_evaluation(step)

    def log_evaluation(self, step: int) -> None:
        if self.trackers is not None:
            self.trackers.evaluation(step, self.history.means(step))

    def _progress(self, name: str, done: int, total: int) -> None:
        self.status(f"evaluating {name}: {done} of {total}")
        self.check()


def _sessions(path: Path) -> list[object]:
    return list(json.loads(path.read_text(encoding="utf-8"))["sessions"]) if path.is_file() else []

"""`memfactory train`: the run folder, its trackers, held-out evaluation and a clean stop around a trainer."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType

from memfactory.build import Runtime, build_runtime, training_data
from memfactory.config import Resolved
from memfactory.config.agent_file import write_agent_file
from memfactory.config.correction import auto_loss, chosen_correction, with_correction
from memfactory.config.schema import RunConfig
from memfactory.config.strange_endpoints import endpoint_marks
from memfactory.config.trained import trainer_options
from memfactory.config.training import LoopOptions
from memfactory.engines.replies import ReplyStore
from memfactory.environment import describe_environment, process_rank
from memfactory.errors import ConfigError, DataError
from memfactory.evaluation.collector import UnknownScores
from memfactory.evaluation.episodes import evaluate_tasks
from memfactory.evaluation.results import DatasetResult, EvalHistory
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.figures import draw_run
from memfactory.files.atomic import set_aside, write_json, write_text
from memfactory.model.loading import resolve_device
from memfactory.plugins.boundary import guarded, made
from memfactory.plugins.loading import keep_copies
from memfactory.plugins.trust import trust
from memfactory.policy.making import make_policy
from memfactory.policy.processes import (
    leave_processes,
    of_first_process,
    reporting_ended_process,
    watched_launcher,
)
from memfactory.policy.weights import check_engine
from memfactory.redaction import redacted_command
from memfactory.registry import TRAINERS
from memfactory.run_folder import RunFolder, open_run_folder
from memfactory.signals import STOPPING, handled
from memfactory.trackers.base import State
from memfactory.trackers.fanout import Trackers
from memfactory.trainers.base import Interrupted, Trained, Trainer, remove_partial
from memfactory.trainers.learners import Learners
from memfactory.types import Task

log = logging.getLogger("memfactory")
REPLIES = "replies.jsonl"
"""The file of a run with the greedy replies of frozen engines, which a resumed run reads instead of requesting them."""


def run_training(resolved: Resolved, *, resume: str | None = None) -> Path:
    """Run the training of a config and return the run folder.

    `resume` is None for a new run, "auto" for the newest checkpoint of the run folder (from the start without
    one), or the path of a run folder or checkpoint. Raises ConfigError if the folder and `resume` do not fit,
    `Interrupted` when the user stopped the run (its last whole step is saved).
    """
    options = trainer_options(resolved.config)
    if options is None:
        raise ConfigError("train: this config names no trainer; add for example `train: grpo_single_gpu`")
    # The first process alone chooses and locks the folder; the others ask it once the processes can communicate.
    with watched_launcher(), open_run_folder(resolved, resume) if process_rank() == 0 else nullcontext() as place:
        return _run_in(place, resolved, options)


def _run_in(own: RunFolder | None, resolved: Resolved, options: LoopOptions) -> Path:
    """Train in the run folder that the first process has locked."""
    name = resolved.config.trainer_name
    kind: type[Trainer] = TRAINERS.get(name)
    # Rows that cannot be used are reported before minutes are spent on loading weights.
    data = training_data(resolved)
    with guarded(kind, doing="in reading its data"):
        tasks = kind.read(options, data)
    held_out = {
        title: data.reader.tasks(component, data.env, data.base_dir)
        for title, component in resolved.config.data.eval.items()
    }
    options = _with_correction(options, resolved.config)
    replies = ReplyStore()
    runtime = build_runtime(resolved, training=options.policy is not None, replies=replies)
    try:
        with reporting_ended_process():
            trained = _trained(resolved, options, runtime)
            place = of_first_process(own) if trained.process_count > 1 else own
        if place is None:
            raise ConfigError("the first process has no run folder")
        run = LiveRun(resolved, place, runtime, held_out, trained.process_index, trained.process_count)
        trainer: Trainer = made(TRAINERS, name, options, runtime, trained, tasks, run)
        if place.checkpoint is not None:
            trainer.resume(place.checkpoint)
            if trainer.finished() and run.main:
                log.warning("nothing is left to do after step %d; raise train.steps to continue", trainer.state.step)
        with run.open(trainer, resumed=place.checkpoint is not None), reporting_ended_process():
            if run.main:
                replies.keep_in(run.folder / REPLIES)
            trainer.train()
    finally:
        replies.close()
        runtime.close()
        leave_processes()
    return place.folder


def _with_correction(options: LoopOptions, config: RunConfig) -> LoopOptions:
    """The options with the importance correction that `auto` stands for; one that is on is logged."""
    if auto_loss(options) is None:
        return options
    cuda = resolve_device(config.model.device).type == "cuda"
    correction, reason = chosen_correction(config, cuda=cuda)
    if correction != "none":
        log.info("train.loss.sampler_correction: auto takes %s, because %s", correction, reason)
    return with_correction(options, config, cuda=cuda)


def _trained(resolved: Resolved, options: LoopOptions, runtime: Runtime) -> Trained:
    """The parameters in training: the language model's, or those of modules that learn by themselves."""
    if options.policy is None:
        return Learners(runtime.agent)
    if runtime.model is None or runtime.chat is None:
        raise ConfigError("engine: the policy is behind an API, so there are no weights to train")
    policy = make_policy(runtime.model, runtime.chat, resolved.config.model, options.policy, seed=runtime.seed)
    check_engine(policy.network, resolved.config.engine)
    return policy


@dataclass
class LiveRun:
    """A run in progress; a trainer sees it as `trainers.base.Run`. `held_out` are the evaluation sets by name."""

    resolved: Resolved
    place: RunFolder
    runtime: Runtime
    held_out: Mapping[str, tuple[Task, ...]] = field(default_factory=dict)
    process_index: int = 0
    process_count: int = 1
    interrupted: bool = False
    trackers: Trackers | None = None
    history: EvalHistory = field(default_factory=EvalHistory)
    cut: set[str] = field(default_factory=set)

    @property
    def main(self) -> bool:
        """Whether this is the first process."""
        return self.process_index == 0

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.process_count == 1

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.place.folder

    @contextmanager
    def open(self, trainer: Trainer, *, resumed: bool) -> Iterator[None]:
        """Prepare the folder, start the trackers, catch Ctrl-C; close all of it however training ends."""
        if not self.main:
            with self._signals():
                yield
            return
        self._prepare_folder(trainer.state.step, resumed)
        trackers, values = self.resolved.config.trackers, self.resolved.values
        self.trackers = Trackers(trackers, self.folder, values, trainer.steps, trainer.state.step)
        state: State = "success"
        error: str | None = None
        try:
            with self._signals():
                yield
            self.place.check()
        except Interrupted:
            state = "aborted"
            raise
        except BaseException as problem:
            state, error = "crashed", f"{type(problem).__name__}: {problem}"
            raise
        finally:
            self.trackers.finish(state, error)
            self._draw()

    def _prepare_folder(self, step: int, resumed: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self.folder)
        plugins = self.resolved.plugins
        # Plugins and endpoints are trusted because this user starts a run with them.
        named = {plugin.digest: str(plugin.path or plugin.name) for plugin in plugins}
        trust({**named, **endpoint_marks(self.resolved.config)})
        values = {**self.resolved.values, "plugins": keep_copies(plugins, self.folder)}
        write_text(self.folder / "config.yaml", replace(self.resolved, values=values).to_yaml())
        start = {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": redacted_command(sys.argv[1:]),
            "seed": self.resolved.config.seed,
            "from_step": step,
            **describe_environment(),
        }
        path = self.folder / "environment.json"
        write_json(path, {"sessions": [*(_sessions(path) if resumed else []), start]})
        self.history = _history(self.folder / "eval.json", step) if resumed else EvalHistory()

    def _draw(self) -> None:
        """Draw the figures. A run does not fail because of them: errors are logged."""
        try:
            draw_run(self.folder)
        except (DataError, OSError) as error:
            log.warning("the figures could not be drawn: %s", error)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C, SIGTERM or SIGHUP asks for a clean stop, the second stops at once.

        With several processes none stops at once, because their launcher passes on a signal that they already have.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self.interrupted and self.alone:
                raise KeyboardInterrupt
            if self.main and not self.interrupted:
                again = " (again to stop at once and lose it)" if self.alone else ""
                log.warning("stopping: the last whole step will be saved%s", again)
            self.interrupted = True

        with handled(ask, STOPPING):
            yield

    def check(self) -> None:
        if self.main:
            self.place.check()
        if self.interrupted:
            raise Interrupted(str(self.folder))

    def status(self, text: str) -> None:
        if self.trackers is not None:
            self.trackers.status(text)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.trackers is not None:
            self.trackers.log(step, metrics)

    def evaluate(self, step: int) -> None:
        """Evaluate every held-out set and keep the result in eval.json; the weights of all processes are equal.

        A set of which too many scores are unknown is left out with a warning; before the first step it ends the run.
        """
        if not self.main or self.history.has(step):
            return
        limit = self.resolved.config.eval.limit
        settings = EvaluationSettings.from_config(self.resolved.config.eval)
        results = {}
        for name, tasks in self.held_out.items():
            try:
                on_progress = partial(self._progress, name)
                results[name] = evaluate_tasks(self.runtime, tasks[:limit], settings, on_progress=on_progress)
            except UnknownScores as error:
                # Before the first step nothing is lost by stopping, and a wrong setup is best reported then.
                if step == 0:
                    raise
                log.warning("step %d: %s is left out of the evaluation: %s. Training goes on", step, name, error)
            self._warn_of_cut(name, results.get(name))
        if results:
            self.history.add(step, results)
            self.history.save(self.folder / "eval.json")
            self.log_evaluation(step)

    def _warn_of_cut(self, name: str, result: DatasetResult | None) -> None:
        """Warn once of a held-out set whose texts are longer than the agent reads."""
        cut = None if result is None else result.texts.warning(self.runtime.agent.options_by_slot)
        if cut is not None and name not in self.cut:
            self.cut.add(name)
            log.warning("data.eval.%s: %s", name, cut)

    def save_agent(self, folder: Path) -> None:
        """Write memfactory.yaml, so that the weights are the same agent's wherever they are copied."""
        write_agent_file(folder, self.resolved.values, self.resolved.base_dir)

    def log_evaluation(self, step: int) -> None:
        """Log the means of the evaluation of `step`."""
        if self.trackers is not None:
            self.trackers.evaluation(step, self.history.means(step))

    def _progress(self, name: str, done: int, total: int) -> None:
        self.status(f"evaluating {name}: {done} of {total}")
        self.check()


def _sessions(path: Path) -> list[object]:
    """The earlier sessions in environment.json; a damaged file is set aside."""
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_bytes())
        sessions = value.get("sessions") if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        sessions = None
    if isinstance(sessions, list):
        return sessions
    log.warning("%s does not hold the sessions of a run; it is now %s", path, set_aside(path))
    return []


def _history(path: Path, step: int) -> EvalHistory:
    """The evaluations up to `step`; a file that holds none is set aside."""
    try:
        return EvalHistory.load(path, until_step=step)
    except DataError as error:
        log.warning("%s; it is now %s, and earlier evaluations are missing from here on", error, set_aside(path))
        return EvalHistory()

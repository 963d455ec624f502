"""Plays k episodes of each question of a dataset and scores them as they finish."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from memfactory.build import Runtime
from memfactory.episode import Episode
from memfactory.errors import DataError
from memfactory.evaluation.collector import SampleCollector
from memfactory.evaluation.metrics import build_metrics
from memfactory.evaluation.records import RecordFile
from memfactory.evaluation.results import DatasetResult
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.play import PlaySettings, play
from memfactory.seeds import stream_seed
from memfactory.text import is_unfinished_thinking
from memfactory.types import Task, Turn

log = logging.getLogger("memfactory")
OnProgress = Callable[[int, int], None]
"""Called with (finished episodes, all episodes) after every turn; samples on disk count as finished."""


def evaluate_tasks(
    runtime: Runtime,
    tasks: Sequence[Task],
    settings: EvaluationSettings,
    *,
    records: RecordFile | None = None,
    on_progress: OnProgress | None = None,
) -> DatasetResult:
    """avg@k of `tasks` by every metric, with k = `settings.samples`.

    Samples in `records` are not played again; only their missing or unknown scores are computed. Every other episode
    is played, scored and recorded as it finishes. An episode fails when another engine fails or refuses a request (a
    prompt beyond the context, for example): its scores are unknown, a warning counts it, and the next evaluation into
    the same records plays it again. Seeds depend on question and sample alone, so a resumed evaluation ends with the
    same result as an uninterrupted one.

    Raises UnknownScores for a metric with a larger fraction of unknown scores than `settings.max_unknown`, ConfigError
    for a metric that does not exist, DataError for tasks that share an id.
    """
    _refuse_equal_ids(tasks)
    names = settings.metrics or runtime.env.default_metrics(tasks)
    collector = SampleCollector(build_metrics(runtime.env, names, runtime.engines), records)
    missing = collector.take_recorded([(task, index) for task in tasks for index in range(settings.samples)])
    total = len(tasks) * settings.samples
    finished = total - len(missing)
    own = {(task.id, index) for task, index in missing}
    shared_stops: Counter[str] = Counter()
    shared_unfinished: Counter[bool] = Counter()

    def on_turn(episode: Episode, turn: Turn) -> None:
        if (episode.task.id, episode.index) not in own:
            shared_stops[turn.reply.stop] += 1
            shared_unfinished[bool(is_unfinished_thinking(turn.reply.text))] += 1
        report()

    def report() -> None:
        if on_progress:
            on_progress(finished, total)

    report()
    with closing(play_episodes(runtime, missing, settings, on_turn=on_turn)) as episodes:
        unscored: list[Episode] = []
        for episode in episodes:
            finished += 1
            unscored.append(episode)
            if len(unscored) == collector.batch_size:
                collector.add(unscored)
                unscored = []
            report()
        collector.add(unscored)
    if shared_stops["length"]:
        # No record holds these replies, so the result's truncated fraction leaves them out.
        log.warning(
            "%d of %d replies in work that episodes share, such as building a memory bank, were cut by length",
            shared_stops["length"],
            shared_stops.total(),
        )
    if shared_unfinished[True]:
        log.warning(
            "%d of %d replies in work that episodes share never ended their thinking, so they changed no memory",
            shared_unfinished[True],
            shared_unfinished.total(),
        )
    return collector.result(tasks, settings.samples, settings.max_unknown)


def play_episodes(
    runtime: Runtime,
    samples: Sequence[tuple[Task, int]],
    settings: EvaluationSettings,
    *,
    on_turn: Callable[[Episode, Turn], None] | None = None,
) -> Generator[Episode]:
    """Play an episode for each (task, index) and yield it as it finishes.

    No turn is trainable, and the episodes keep no prompts.
    """
    episodes = [Episode(task, index=index, seed=stream_seed(settings.seed, task.id)) for task, index in samples]
    how = PlaySettings(frozen=True, seed=settings.seed, window=settings.window, keep_prompts=False)
    yield from play(runtime.sampler(settings.sampling_params), episodes, how, on_turn=on_turn)


def _refuse_equal_ids(tasks: Sequence[Task]) -> None:
    counts = Counter(task.id for task in tasks)
    repeated = [task_id for task_id, count in counts.items() if count > 1]
    if repeated:
        raise DataError(f"Several tasks have the id {', '.join(repeated[:5])}; samples are recorded by the task's id.")

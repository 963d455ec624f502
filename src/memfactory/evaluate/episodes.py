"""Playing k attempts at each question, scoring them as they finish, and what comes out for a dataset."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import metadata

from memfactory.data.digest import data_hash
from memfactory.dialogue import Agent
from memfactory.engines.base import Engine
from memfactory.engines.options import EngineConfig, HfEngineConfig, OpenAIEngineConfig
from memfactory.envs.base import Environment
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.errors import DataError, MemFactoryError
from memfactory.evaluate.categories import by_category
from memfactory.evaluate.fingerprint import digest
from memfactory.evaluate.records import RecordFile, SampleRecord, record
from memfactory.evaluate.results import DatasetResult, MetricResult, metric_result
from memfactory.evaluate.statistics import question_means
from memfactory.play import play
from memfactory.plugins.boundary import code_digest, made
from memfactory.registry import REWARDS
from memfactory.rollout import texts_read, warn_of_failures
from memfactory.seeds import stream_seed
from memfactory.types import SamplingParams, Task, Turn

log = logging.getLogger("memfactory")
OnProgress = Callable[[int, int], None]
"""Told (attempts finished, attempts in all) after every turn; those that were on disk already count as finished."""
WINDOW = 128
"""Attempts under way at one time, so that the first are on disk long before the last begin."""
JUDGED_TOGETHER = 16
"""Finished attempts that a judge scores at one time: enough to keep its connections busy, few to lose by a kill."""


class UnknownScores(MemFactoryError):
    """Too many scores are unknown for the rest to stand for the dataset."""


def evaluate_tasks(
    agent: Agent,
    env: Environment,
    tasks: Sequence[Task],
    engines: Mapping[str, Engine],
    *,
    samples: int,
    decodings: Mapping[str, SamplingParams],
    seed: int,
    metrics: Sequence[str] = (),
    records: RecordFile | None = None,
    max_unknown_share: float = 0.1,
    window: int = WINDOW,
    on_progress: OnProgress | None = None,
) -> DatasetResult:
    """avg@`samples` of `tasks` by every metric (none named: the environment's defaults for these tasks).

    Attempts that `records` holds are not played again, and scored only where a metric is missing or unknown; the
    others are played and recorded as they finish. An attempt that a helper's failure or a refused request (such as a
    prompt beyond the context) ended has unknown scores and is played again by the next evaluation into the same
    records; a warning counts such attempts. Seeds are by question and attempt, so a resumed evaluation finds what an
    uninterrupted one does. Raises UnknownScores when more than `max_unknown_share` of a metric's scores are unknown,
    ConfigError for a metric that does not exist, DataError for tasks that share an id.
    """
    _refuse_equal_ids(tasks)
    scorers = build_metrics(env, tuple(metrics) or env.default_metrics(tasks), engines)
    collected = _Collected(scorers, records)
    missing = collected.take_recorded([(task, number) for task in tasks for number in range(samples)])
    total = len(tasks) * samples
    played = total - len(missing)
    own = {(task.id, number) for task, number in missing}
    shared: Counter[str] = Counter()

    def report(episode: Episode | None = None, turn: Turn | None = None) -> None:
        if episode is not None and turn is not None and (episode.task.id, episode.index) not in own:
            shared[turn.reply.stop] += 1
        if on_progress:
            on_progress(played, total)

    report()
    with closing(
        play_episodes(agent, missing, engines, decodings=decodings, seed=seed, window=window, on_turn=report)
    ) as run:
        waiting: list[Episode] = []
        for episode in run:
            played += 1
            waiting.append(episode)
            if len(waiting) == collected.scored_together:
                collected.add(waiting)
                waiting = []
            report()
        collected.add(waiting)
    if shared["length"]:
        # They are in no record, and so not in what the result says of truncation.
        log.warning(
            "%d of %d replies in work that attempts share, such as building a memory bank, were cut by length",
            shared["length"],
            shared.total(),
        )
    return collected.result(tasks, samples, max_unknown_share)


def play_episodes(
    agent: Agent,
    attempts: Sequence[tuple[Task, int]],
    engines: Mapping[str, Engine],
    *,
    decodings: Mapping[str, SamplingParams],
    seed: int,
    window: int = WINDOW,
    on_turn: Callable[[Episode, Turn], None] | None = None,
) -> Generator[Episode]:
    """Play each (task, attempt's number) and yield the episodes as they finish; nothing is marked trainable.

    The episodes keep no prompts.
    """
    episodes = [Episode(task, index=number, seed=stream_seed(seed, task.id)) for task, number in attempts]
    yield from play(
        agent,
        episodes,
        engines,
        decodings=decodings,
        frozen=True,
        seed=seed,
        window=window,
        keep_prompts=False,
        on_turn=on_turn,
    )


def episode_window(engine: EngineConfig) -> int:
    """Twice what the engine works on at one time: it never waits, and the first attempts still end early."""
    if isinstance(engine, HfEngineConfig):
        return 2 * engine.max_batch
    return 2 * engine.concurrency if isinstance(engine, OpenAIEngineConfig) else 4 * WINDOW


def build_metrics(env: Environment, names: Sequence[str], engines: Mapping[str, Engine]) -> dict[str, RewardFunction]:
    """The rewards called `names`: the environment's own where it has them, else with their default options.

    Raises ConfigError for a name that no reward has.
    """
    own = {reward.name: reward for reward in env.rewards}
    return {name: own.get(name) or made(REWARDS, name, REWARDS.options(name)(), engines) for name in names}


def rules_of(scorers: Mapping[str, RewardFunction]) -> dict[str, str]:
    """What names the rule by which each scores: its options, and the version of this package or a user's own code.

    A judge's is part of what the samples depend on.
    """
    return {name: _rule(scorer) for name, scorer in scorers.items() if not scorer.asks_a_model}


def _rule(reward: RewardFunction) -> str:
    code = code_digest(type(reward)) or metadata.version("memfactory")
    return digest([reward.options.model_dump(mode="json", exclude={"weight"}), code])


class _Collected:
    """The samples of one dataset while they come in: scored, recorded, and at last summed up."""

    def __init__(self, scorers: Mapping[str, RewardFunction], records: RecordFile | None) -> None:
        self.scorers = scorers
        self.records = records
        self.found: dict[tuple[str, int], SampleRecord] = {}
        self.scored_together = JUDGED_TOGETHER if any(scorer.asks_a_model for scorer in scorers.values()) else 1

    def take_recorded(self, wanted: Sequence[tuple[Task, int]]) -> list[tuple[Task, int]]:
        """Take what is on disk, scoring what lacks a score; the attempts that are not there."""
        missing: list[tuple[Task, int]] = []
        unscored: list[tuple[SampleRecord, Task]] = []
        for task, number in wanted:
            held = None if self.records is None else self.records.get(task.id, number)
            if held is None or held.failure is not None:
                missing.append((task, number))
                continue
            self.found[task.id, number] = held
            if any(held.scores.get(name) is None for name in self.scorers):
                unscored.append((held, task))
        for start in range(0, len(unscored), JUDGED_TOGETHER):
            part = unscored[start : start + JUDGED_TOGETHER]
            for (held, _), scores in zip(part, self._score([old.episode(task) for old, task in part]), strict=True):
                known = {name: score for name, score in held.scores.items() if score is not None}
                if (merged := {**scores, **known}) != {**dict.fromkeys(scores), **held.scores}:
                    self._keep(replace(held, scores=merged))
        return missing

    def add(self, episodes: Sequence[Episode]) -> None:
        """Score and record finished attempts."""
        dataset = "" if self.records is None else self.records.dataset
        for episode, scores in zip(episodes, self._score(episodes), strict=True):
            self._keep(record(dataset, episode, scores))

    def _warn_of_failures(self) -> None:
        failures = [(held.task_id, held.failure) for held in self.found.values() if held.failure is not None]
        warn_of_failures(failures, len(self.found), "scores")

    def _keep(self, new: SampleRecord) -> None:
        self.found[new.task_id, new.sample] = new
        if self.records is not None:
            self.records.add(new)

    def _score(self, episodes: Sequence[Episode]) -> list[dict[str, float | None]]:
        """Each episode's score by each metric; all are unknown of an attempt that failed."""
        played = [episode for episode in episodes if episode.failure is None]
        columns = {name: iter(reward.scores(played)) if played else iter(()) for name, reward in self.scorers.items()}
        return [
            {name: next(column) if episode.failure is None else None for name, column in columns.items()}
            for episode in episodes
        ]

    def result(self, tasks: Sequence[Task], samples: int, max_unknown_share: float) -> DatasetResult:
        """The dataset's result; MemFactoryError where too many scores are unknown."""
        self._warn_of_failures()
        scores = {
            name: {
                task.id: [self.found[task.id, number].scores.get(name) for number in range(samples)] for task in tasks
            }
            for name in self.scorers
        }
        metrics: dict[str, MetricResult] = {}
        for name, given in scores.items():
            unknown = sum(score is None for row in given.values() for score in row)
            found = metric_result(given, samples)
            if found is None or unknown > max_unknown_share * len(tasks) * samples:
                raise UnknownScores(
                    f"{unknown} of {len(tasks) * samples} scores of {name!r} are unknown (a judge or a helper failed, "
                    "a prompt did not fit the context, or there is no gold answer), more than the share of "
                    f"{max_unknown_share:g} that eval.max_unknown_share allows"
                )
            metrics[name] = found
        means = {name: question_means(given) for name, given in scores.items()}
        replies = [turn.stop for row in self.found.values() for turn in row.turns]
        return DatasetResult(
            metrics=metrics,
            questions=len(tasks),
            samples=samples,
            truncated=replies.count("length") / len(replies) if replies else 0.0,
            data_hash=data_hash(tasks),
            by_question=means,
            categories=by_category(means, tasks),
            texts=texts_read({task_id: row.reading for (task_id, _), row in self.found.items()}),
        )


def _refuse_equal_ids(tasks: Sequence[Task]) -> None:
    ids = Counter(task.id for task in tasks)
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        raise DataError(f"tasks share an id, so their attempts cannot be told apart: {', '.join(twice[:5])}")

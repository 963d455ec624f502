"""The samples of one dataset as they arrive: scored, recorded, and summed up in a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from memfactory.data.digest import data_hash
from memfactory.envs.rewards.base import RewardFunction, scores_by_name
from memfactory.episode import Episode
from memfactory.errors import MemFactoryError
from memfactory.evaluation.categories import by_category
from memfactory.evaluation.records import RecordFile
from memfactory.evaluation.results import DatasetResult, MetricResult, metric_result
from memfactory.evaluation.samples import SampleRecord, record
from memfactory.evaluation.statistics import question_means
from memfactory.rollout import texts_read, warn_of_failures
from memfactory.text import is_unfinished_thinking, unfinished_share
from memfactory.types import Task

JUDGE_BATCH = 16
"""Episodes that a judge scores together: enough to keep its connections busy, few enough to lose in a kill."""


class UnknownScores(MemFactoryError):
    """Too many scores are unknown for the known ones to stand for the dataset."""


class SampleCollector:
    """Scores and records the samples of one dataset. `batch_size` episodes are best scored together."""

    def __init__(self, metrics: Mapping[str, RewardFunction], records: RecordFile | None) -> None:
        self.metrics = metrics
        self.batch_size = JUDGE_BATCH if any(metric.asks_a_model for metric in metrics.values()) else 1
        self._records = records
        self._samples: dict[tuple[str, int], SampleRecord] = {}

    def take_recorded(self, requested: Sequence[tuple[Task, int]]) -> list[tuple[Task, int]]:
        """Take the samples on disk and score those without a score; returns the samples that must be played."""
        missing: list[tuple[Task, int]] = []
        unscored: list[tuple[SampleRecord, Task]] = []
        for task, index in requested:
            sample = None if self._records is None else self._records.get(task.id, index)
            if sample is None or sample.failure is not None:
                missing.append((task, index))
                continue
            self._samples[task.id, index] = sample
            if any(sample.scores.get(name) is None for name in self.metrics):
                unscored.append((sample, task))
        for start in range(0, len(unscored), JUDGE_BATCH):
            batch = unscored[start : start + JUDGE_BATCH]
            scores_of_batch = scores_by_name(self.metrics, [sample.episode(task) for sample, task in batch])
            for (sample, _), scores in zip(batch, scores_of_batch, strict=True):
                known = {name: score for name, score in sample.scores.items() if score is not None}
                merged = {**scores, **known}
                if merged != {**dict.fromkeys(scores), **sample.scores}:
                    self._add(replace(sample, scores=merged))
        return missing

    def add(self, episodes: Sequence[Episode]) -> None:
        """Score and record finished episodes."""
        dataset = "" if self._records is None else self._records.dataset
        for episode, scores in zip(episodes, scores_by_name(self.metrics, episodes), strict=True):
            self._add(record(dataset, episode, scores))

    def result(self, tasks: Sequence[Task], samples: int, max_unknown: float) -> DatasetResult:
        """The result of the dataset. Raises UnknownScores for a metric with a larger fraction of unknown scores."""
        failures = [(sample.task_id, sample.failure) for sample in self._samples.values() if sample.failure is not None]
        warn_of_failures(failures, len(self._samples), "scores")
        scores = {
            name: {
                task.id: [self._samples[task.id, index].scores.get(name) for index in range(samples)] for task in tasks
            }
            for name in self.metrics
        }
        metrics: dict[str, MetricResult] = {}
        for name, by_task in scores.items():
            unknown = sum(score is None for row in by_task.values() for score in row)
            result = metric_result(by_task, samples)
            if result is None or unknown > max_unknown * len(tasks) * samples:
                raise UnknownScores(
                    f"{unknown} of {len(tasks) * samples} scores of {name!r} are unknown: a judge or another engine "
                    "failed, a prompt exceeded the context, or a question has no gold answer. "
                    f"eval.max_unknown_fraction allows a fraction of {max_unknown:g}"
                )
            metrics[name] = result
        means = {name: question_means(by_task) for name, by_task in scores.items()}
        turns = [turn for sample in self._samples.values() for turn in sample.turns]
        return DatasetResult(
            metrics=metrics,
            questions=len(tasks),
            samples=samples,
            truncated=sum(turn.stop == "length" for turn in turns) / len(turns) if turns else 0.0,
            unfinished_thinking=unfinished_share([is_unfinished_thinking(turn.text) for turn in turns]),
            data_hash=data_hash(tasks),
            by_question=means,
            categories=by_category(means, tasks),
            texts=texts_read({task_id: sample.reading for (task_id, _), sample in self._samples.items()}),
        )

    def _add(self, sample: SampleRecord) -> None:
        self._samples[sample.task_id, sample.sample] = sample
        if self._records is not None:
            self._records.add(sample)

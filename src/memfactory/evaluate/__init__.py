"""Evaluation: avg@k over datasets with clustered standard errors, records of samples that resume, tables."""

from memfactory.evaluate.episodes import evaluate_tasks, play_episodes
from memfactory.evaluate.records import RecordFile, SampleRecord, read_records
from memfactory.evaluate.results import DatasetResult, EvalHistory, MetricResult
from memfactory.evaluate.running import run_evaluation
from memfactory.evaluate.settings import EvaluationSettings
from memfactory.evaluate.targets import EvalOverrides

__all__ = [
    "DatasetResult",
    "EvalHistory",
    "EvalOverrides",
    "EvaluationSettings",
    "MetricResult",
    "RecordFile",
    "SampleRecord",
    "evaluate_tasks",
    "play_episodes",
    "read_records",
    "run_evaluation",
]

"""Evaluation: avg@k over datasets with clustered standard errors, per-sample records that resume, tables."""

from memfactory.evaluate.episodes import evaluate_tasks, play_episodes
from memfactory.evaluate.records import RecordFile, SampleRecord, read_records
from memfactory.evaluate.results import DatasetResult, EvalHistory, MetricResult
from memfactory.evaluate.running import run_evaluation

__all__ = [
    "DatasetResult",
    "EvalHistory",
    "MetricResult",
    "RecordFile",
    "SampleRecord",
    "evaluate_tasks",
    "play_episodes",
    "read_records",
    "run_evaluation",
]

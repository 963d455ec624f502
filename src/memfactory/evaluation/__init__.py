"""Evaluation: avg@k over datasets with clustered standard errors, records of samples that resume, tables."""

from memfactory.evaluation.episodes import evaluate_tasks, play_episodes
from memfactory.evaluation.records import RecordFile, read_records
from memfactory.evaluation.results import DatasetResult, EvalHistory, MetricResult
from memfactory.evaluation.running import run_evaluation
from memfactory.evaluation.samples import SampleRecord
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.evaluation.targets import EvalOverrides

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
